"""MLX computes what transformers computes with factors injected."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from factor_search.errors import ExportError, VerificationError
from factor_search.export.contract import Source
from factor_search.export.mlx import ACCEPTED
from factor_search.export.registry import export
from factor_search.export.verification.mlx import MLXScorer
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from factor_search.spec import ModelSpec
from tests.families import HEAD, MIXTURE, tiny_model

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

LENGTH = 100  # beyond the original length of the models
POSITIONS = range(1, LENGTH, 3)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "granite", "smollm3")},
    "apertus": ("apertus", {"mlp_bias": False, "post_norm": False, "qk_norm": True}),
    "dots1": ("dots1", HEAD | EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}),
    "gemma3_text": (
        "gemma3_text",
        {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
            },
        },
    ),
    "granitemoe": ("granitemoe", MIXTURE),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "seed_oss": ("seed_oss", HEAD),
    "llama with llama3": ("llama", {"rope_parameters": LLAMA3}),
    "phi3, half rotated": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
    ),
}


def ids() -> torch.Tensor:
    return torch.randint(3, 97, (1, LENGTH), generator=torch.Generator().manual_seed(4))


def source_of(model: PreTrainedModel, folder: Path, attention_factor: float = 1.17, initial_tokens: int = 0) -> Source:
    model.save_pretrained(folder)
    geometry = read_geometry(model.config)
    factors = Factors.of([1.0 + 0.4 * i for i in range(geometry.pairs)], initial_tokens, attention_factor)
    target = max(256, 4 * geometry.original_length)
    return Source(factors_file(factors, FactorsModel.of("m", None, geometry), target), ModelSpec(id=str(folder)))


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, factors: Factors | None) -> list[float]:
    with Injector(model, read_geometry(model.config)) as injector, injector.using([factors] if factors else []):
        logits = model(input_ids=ids()).logits[0].double().log_softmax(-1)
    return [logits[position - 1, ids()[0, position]].item() for position in POSITIONS]


def largest_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def scored_by_mlx(folder: Path) -> list[float]:
    return MLXScorer().log_probabilities(folder, ids()[0].tolist(), POSITIONS)


@pytest.mark.parametrize(("model_type", "overrides"), MODELS.values(), ids=MODELS)
def test_mlx_computes_with_the_factors(model_type: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(model_type, **overrides)
    source = source_of(model, tmp_path / "model")
    exported = export("mlx", source, tmp_path / "out")
    theirs = scored_by_mlx(tmp_path / "out")
    assert largest_difference(theirs, log_probabilities(model, source.file.factors)) <= 1e-4
    assert largest_difference(theirs, log_probabilities(model, None)) > 0.1  # in gemma3_text two layers are rescaled
    assert exported.command == f"mlx_lm.generate --model {tmp_path / 'out'} --prompt Hello"
    assert exported.files[0] == tmp_path / "out" / "config.json"


TEXT = HEAD | {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
MULTI_MODAL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6},
        {},
        {"mm_tokens_per_image": 4},
    ),
    "mistral3": ({"model_type": "mistral", "num_hidden_layers": 2}, {"model_type": "pixtral", "head_dim": 16}, {}),
}


@pytest.mark.parametrize("model_type", MULTI_MODAL)
def test_the_text_part_of_multi_modal_models(model_type: str, tmp_path: Path) -> None:
    text, vision, whole = MULTI_MODAL[model_type]
    config = AutoConfig.for_model(
        model_type,
        text_config=TEXT
        | {"max_position_embeddings": 64, "num_key_value_heads": 2, "tie_word_embeddings": False}
        | text,
        vision_config=VISION | {"image_size": 28, "patch_size": 14} | vision,
        image_token_index=96,
        tie_word_embeddings=False,
        **whole,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
    source = source_of(model, tmp_path / "model")
    export("mlx", source, tmp_path / "out")
    theirs = scored_by_mlx(tmp_path / "out")
    assert largest_difference(theirs, log_probabilities(model, source.file.factors)) <= 1e-4
    assert largest_difference(theirs, log_probabilities(model, None)) > 0.1


def test_scores_are_in_float32_whatever_the_files_have(tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    source = source_of(model, tmp_path / "model")
    export("mlx", source, tmp_path / "out")
    ours = log_probabilities(model.float(), source.file.factors)
    assert largest_difference(scored_by_mlx(tmp_path / "out"), ours) <= 1e-4


def test_every_accepted_type_is_run() -> None:
    assert {model_type for model_type, _ in MODELS.values()} | set(MULTI_MODAL) == ACCEPTED


@pytest.mark.parametrize("attention_factor", [1.0, 1.02, 1.1547, 1.4])
def test_any_attention_factor_from_1(attention_factor: float, tmp_path: Path) -> None:
    model = tiny_model("llama")
    source = source_of(model, tmp_path / "model", attention_factor)
    export("mlx", source, tmp_path / "out")
    ours = log_probabilities(model, source.file.factors)
    assert largest_difference(scored_by_mlx(tmp_path / "out"), ours) <= 1e-4


def test_a_configuration_of_transformers_5_alone_is_ignored(tmp_path: Path) -> None:
    model = tiny_model("llama")
    source = source_of(model, tmp_path / "model")
    export("mlx", source, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    content = json.loads(file.read_text())
    old = {name: content.pop(name) for name in ("rope_scaling", "rope_theta", "original_max_position_embeddings")}
    assert content["rope_parameters"]["rope_type"] == old["rope_scaling"]["rope_type"] == "longrope"
    file.write_text(json.dumps(content))
    theirs = scored_by_mlx(tmp_path / "out")
    assert largest_difference(theirs, log_probabilities(model, None)) <= 1e-4
    assert largest_difference(theirs, log_probabilities(model, source.file.factors)) > 0.5


@pytest.mark.parametrize(
    "model_type", ["mixtral", "gemma2", "qwen3_moe", "glm4", "cohere", "ernie4_5", "deepseek_v3", "gpt_oss"]
)
def test_models_that_compute_something_else_are_refused(model_type: str, tmp_path: Path) -> None:
    source = source_of(tiny_model(model_type), tmp_path / "model")
    with pytest.raises(ExportError, match=rf"models of type {model_type}, only for apertus, .*: export another format"):
        export("mlx", source, tmp_path / "out", nearest=True)
    assert not (tmp_path / "out").exists()


def test_the_nearest_without_initial_tokens_and_with_an_attention_factor_of_1(tmp_path: Path) -> None:
    model = tiny_model("llama")
    source = source_of(model, tmp_path / "model", attention_factor=0.9, initial_tokens=4)
    with pytest.raises(ExportError, match=r"4 initial tokens, .*; the attention factor is 0.9, .* below 1; ."):
        export("mlx", source, tmp_path / "out")
    export("mlx", source, tmp_path / "out", nearest=True)
    nearest = Factors.of(source.file.rescale_factors)
    assert largest_difference(scored_by_mlx(tmp_path / "out"), log_probabilities(model, nearest)) <= 1e-4


def test_what_mlx_cannot_load_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="mlx-lm cannot run") as caught:
        scored_by_mlx(tmp_path)
    assert "\n" not in str(caught.value)
    assert MLXScorer().version()
