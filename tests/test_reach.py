"""How far rotated layers see, compared with what the layers of live models do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from factor_search.errors import ExportError, UnsupportedModelError
from factor_search.export.contract import Source
from factor_search.export.huggingface import HuggingFace
from factor_search.export.registry import expressible
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.job import check_possible
from factor_search.model.configuration import read_geometry
from factor_search.model.decoder import decoder_of
from factor_search.model.injection import Injector
from factor_search.spec import ModelSpec, parse_spec
from tests.conftest import save_checkpoint
from tests.families import SMALL, tiny_model
from tests.rest_service import app_on, calling
from workers.policy import Policy

LENGTH, WINDOW = 24, 8
LAYERS = {"num_hidden_layers": 4}
WINDOWS = ["sliding_attention"] * 4
MIXED = ["sliding_attention", "full_attention"] * 2
CASES: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "llama": ("llama", {}, None),
    "mistral, window": ("mistral", {"sliding_window": WINDOW}, WINDOW),
    "mistral, no window": ("mistral", {"sliding_window": None}, None),
    "mixtral": ("mixtral", {"sliding_window": WINDOW}, WINDOW),
    "phi3": ("phi3", {"sliding_window": WINDOW}, WINDOW),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}, WINDOW),
    "qwen2, window off": ("qwen2", {"sliding_window": WINDOW, "max_window_layers": 0}, None),
    "qwen2, window on": (
        "qwen2",
        {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0},
        WINDOW,
    ),
    "qwen2, upper layers": (
        "qwen2",
        {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
        None,
    ),
    "qwen3_moe": ("qwen3_moe", {"sliding_window": WINDOW, "use_sliding_window": True}, WINDOW),
    "ministral": ("ministral", {"sliding_window": WINDOW, "head_dim": 16}, WINDOW),
    "gemma2": ("gemma2", LAYERS | {"sliding_window": WINDOW, "layer_types": MIXED}, None),
    "gemma3_text": ("gemma3_text", {"sliding_window": WINDOW}, None),
    "gpt_oss": ("gpt_oss", {"sliding_window": WINDOW}, None),
    "olmo3": ("olmo3", LAYERS | {"sliding_window": WINDOW}, None),
    "olmo3, windows only": ("olmo3", LAYERS | {"sliding_window": WINDOW, "layer_types": WINDOWS}, WINDOW),
    "cohere2": ("cohere2", LAYERS | {"sliding_window": WINDOW, "layer_types": MIXED}, WINDOW),
    "exaone4, windows": ("exaone4", LAYERS | {"sliding_window": WINDOW, "layer_types": MIXED}, WINDOW),
    "exaone4, no window": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}, None),
    "smollm3": ("smollm3", LAYERS, None),
    "smollm3, no layer with RoPE and all": (
        "smollm3",
        LAYERS
        | {"no_rope_layers": [1, 0, 1, 0], "sliding_window": WINDOW, "use_sliding_window": True, "layer_types": MIXED},
        WINDOW,
    ),
    "llama4_text": ("llama4_text", LAYERS | {"attention_chunk_size": WINDOW}, WINDOW),
}


@pytest.mark.parametrize("case", CASES)
def test_reach_is_that_of_the_live_layers(case: str) -> None:
    model_type, overrides, expected = CASES[case]
    model = tiny_model(model_type, _attn_implementation="eager", **overrides)
    reach = read_geometry(model.config).reach
    assert reach == expected
    assert min(reach or LENGTH, LENGTH) == live_reach(model)


@torch.inference_mode()
def live_reach(model: PreTrainedModel) -> int:
    """The most tokens that the last token sees in a layer whose output depends on the rotation."""
    ids = torch.arange(LENGTH)[None] % 90 + 3
    geometry = read_geometry(model.config)
    calls: dict[torch.nn.Module, list[tuple[Any, Any, torch.Tensor]]] = {}

    def record(module: torch.nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        calls.setdefault(module, []).append((arguments, keywords, output[0]))

    attentions = [m for name, m in decoder_of(model).named_modules() if name.endswith(("self_attn", "attention"))]
    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in attentions]
    model(input_ids=ids, use_cache=False)
    with Injector(model, geometry) as injector, injector.using([Factors.of([3.0] * geometry.pairs)]):
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    seen = [0]
    for module, ((arguments, keywords, before), (_, other, _)) in calls.items():
        after = module(*arguments, **(keywords | {"position_embeddings": other["position_embeddings"]}))[0]
        if not torch.equal(before, after):
            allowed = keywords["attention_mask"][0, 0, -1]
            seen.append(int((allowed if allowed.dtype == torch.bool else allowed == 0).sum()))
    assert len(calls) == model.config.num_hidden_layers
    return max(seen)


def test_a_window_longer_than_the_original_length_is_searched() -> None:
    tiny = SMALL | {"head_dim": 16, "max_position_embeddings": 64}
    short = read_geometry(AutoConfig.for_model("mistral", **tiny, sliding_window=64))
    long = read_geometry(AutoConfig.for_model("mistral", **tiny, sliding_window=65))
    assert (short.no_longer_context is None, long.no_longer_context is None) == (False, True)
    long.check_searchable()
    with pytest.raises(UnsupportedModelError, match="sees at most 64 tokens, and its original length is 64"):
        short.check_searchable()


def test_nothing_is_searched_or_exported_where_no_layer_sees_more(tmp_path: Path, texts: Path) -> None:
    folder = save_checkpoint(tiny_model("mistral", vocab_size=257, sliding_window=32), tmp_path / "model")
    job = {"model": str(folder), "data": [f"{texts}/*.txt"], "target_length": 128}
    with pytest.raises(UnsupportedModelError, match="no rescale factors lengthen what it sees"):
        check_possible(parse_spec(job))
    spec = ModelSpec(id=str(folder))
    geometry = read_geometry(AutoConfig.from_pretrained(folder))
    file = factors_file(Factors.of([2.0] * 8), FactorsModel.of(spec.id, None, geometry), 128)
    with pytest.raises(ExportError, match="sees at most 32 tokens"):
        expressible(HuggingFace(), Source(file, spec))


def test_a_server_refuses_it_when_it_is_submitted(tmp_path: Path, texts: Path) -> None:
    folder = save_checkpoint(tiny_model("mistral", vocab_size=257, sliding_window=32), tmp_path / "model")
    policy = Policy((tmp_path, texts), allow_hub=False, allow_remote_code=False)
    with calling(app_on(tmp_path, policy=policy)) as client:
        job = {"model": str(folder), "data": [f"{texts}/*.txt"], "target_length": 128}
        response = client.post("/v1/jobs", json=job)
    assert response.status_code == 422
    assert "no rescale factors lengthen what it sees" in response.json()["detail"]
