"""The frequencies of a loaded model against what its configuration was read to mean."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from factor_search.errors import UnsupportedModelError
from factor_search.export.huggingface import huggingface_config
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.files.json_documents import write_json
from factor_search.job import run_job
from factor_search.methods import closed_form, closed_forms
from factor_search.model.configuration import read_geometry
from factor_search.model.decoder import decoder_of
from factor_search.model.geometry import Geometry
from factor_search.model.injection import Injector, find_sites
from factor_search.model.live_frequencies import with_live_frequencies
from factor_search.model.loading import load_config, load_model
from factor_search.report.document import build_factors_file
from factor_search.spec import ModelSpec, parse_spec
from tests.conftest import save_checkpoint
from tests.families import FAMILIES, SMALL, tiny_model

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0},
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 32},
}
SCALED = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox", "stablelm", "glm4", "olmo2", "granite", "phi", "gpt_oss")
ALPHA = {
    "head_dim": 16,
    "rope_theta": 10_000.0,
    "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1},
}
"""HunYuan-7B's RoPE."""


@torch.inference_mode()
def logits(model: PreTrainedModel, length: int = 48) -> torch.Tensor:
    return model(input_ids=torch.arange(length)[None] % 90 + 3, use_cache=False).logits


def scaling(rope_type: str, pairs: int) -> dict[str, Any]:
    lists = {"short_factor": [1.5] * pairs, "long_factor": [3.0] * pairs} if rope_type == "longrope" else {}
    return {"rope_type": rope_type, **SCALINGS.get(rope_type, {}), **lists}


def set_frequencies(model: PreTrainedModel, inverse: torch.Tensor, attention: float = 1.0) -> Geometry:
    """Let the model rotate with other frequencies than its configuration says; returns what that says."""
    geometry = read_geometry(model.config)
    for site in find_sites(decoder_of(model), geometry):
        for buffer in (site.buffer, f"original_{site.buffer}"):
            site.module.get_buffer(buffer).copy_(inverse)
        setattr(site.module, site.scaling, attention)
    return geometry


@pytest.mark.parametrize("model_type", FAMILIES)
def test_families_rotate_as_configured(model_type: str) -> None:
    model = tiny_model(model_type)
    geometry = read_geometry(model.config)
    assert with_live_frequencies(model, geometry) is geometry


@pytest.mark.parametrize("rope_type", SCALINGS)
@pytest.mark.parametrize("model_type", SCALED)
def test_scaled_models_rotate_as_configured(model_type: str, rope_type: str) -> None:
    rope = scaling(rope_type, read_geometry(tiny_model(model_type).config).pairs)
    model = tiny_model(model_type, rope_scaling=rope, max_position_embeddings=128)
    geometry = read_geometry(model.config)
    assert geometry.base_rope_type == rope_type
    assert with_live_frequencies(model, geometry) is geometry


def test_scaling_of_one_layer_type() -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    model = tiny_model("gemma3_text", rope_parameters=rope)
    geometry = read_geometry(model.config)
    assert (geometry.layer_type, geometry.base_rope_type) == ("full_attention", "linear")
    assert with_live_frequencies(model, geometry) is geometry


@pytest.mark.parametrize("model_type", ["glm", "glm4"])
def test_odd_partial_rotary_dimension(model_type: str) -> None:
    """d = 11 in the exponents of 6 pairs."""
    model = tiny_model(model_type, head_dim=16, partial_rotary_factor=0.7)
    geometry = read_geometry(model.config)
    assert (geometry.pairs, geometry.rotary_dim, geometry.exponent_dim) == (6, 12, 11)
    assert with_live_frequencies(model, geometry) is geometry
    with Injector(model, geometry) as injector, injector.using([closed_form("none", geometry, 128)]):
        injected = logits(model)
    assert torch.equal(injected, logits(model))


@pytest.mark.parametrize("model_type", ["hunyuan_v1_dense", "hunyuan_v1_moe"])
def test_alpha_of_hunyuan_is_a_larger_base(model_type: str) -> None:
    experts = {"num_experts": 4, "moe_topk": 2} if model_type.endswith("moe") else {}
    model = tiny_model(model_type, **ALPHA, **experts)
    geometry = read_geometry(model.config)
    assert geometry.rope_theta == 10_000.0 * 1000.0 ** (16 / 14)
    assert geometry.base_rope_type == "default"
    assert "as-configured" not in closed_forms(geometry, 256)
    assert with_live_frequencies(model, geometry) is geometry
    with Injector(model, geometry) as injector, injector.using([closed_form("none", geometry, 256)]):
        injected = logits(model)
    torch.testing.assert_close(injected, logits(model), rtol=0, atol=1e-5)


def test_alpha_of_hunyuan_is_exported(tmp_path: Path) -> None:
    """The exported base is the larger one, and its configuration no longer has an alpha that would raise it again."""
    folder = save_checkpoint(tiny_model("hunyuan_v1_dense", vocab_size=257, **ALPHA), tmp_path / "model")
    loaded = load_model(ModelSpec(id=str(folder)))
    candidate = Factors.of([1.0 + i for i in range(8)], 0, 1.1)
    file = factors_file(candidate, FactorsModel.of(str(folder), None, loaded.geometry), 256)
    write_json(folder / "config.json", huggingface_config(file, load_config(ModelSpec(id=str(folder)))))
    exported = AutoModelForCausalLM.from_pretrained(folder)
    with Injector(loaded.model, loaded.geometry) as injector, injector.using([candidate]):
        injected = logits(loaded.model, 90)
    torch.testing.assert_close(logits(exported, 90), injected, rtol=0, atol=1e-5)


def test_a_model_that_cannot_rotate_an_odd_dimension_is_refused(tmp_path: Path) -> None:
    """Transformers loads it, and fails when it computes."""
    folder = save_checkpoint(tiny_model("phi", vocab_size=257, partial_rotary_factor=0.7), tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="does not compute logits of a text alone"):
        load_model(ModelSpec(id=str(folder)))


def test_alpha_elsewhere_is_not_read() -> None:
    """Transformers' own dynamic type ignores the key."""
    model = tiny_model("llama", rope_scaling=ALPHA["rope_scaling"])
    geometry = read_geometry(model.config)
    assert (geometry.rope_theta, geometry.base_rope_type) == (10_000.0, "dynamic")
    assert with_live_frequencies(model, geometry) is geometry


@pytest.mark.parametrize("rope_type", ["default", "linear", "dynamic", "longrope"])
def test_another_base_becomes_the_base(rope_type: str) -> None:
    model = tiny_model("llama", rope_scaling=scaling(rope_type, 8), max_position_embeddings=128)
    base = 1_234_567.0
    geometry = set_frequencies(model, base ** (-torch.arange(0, 16, 2) / 16))
    live = with_live_frequencies(model, geometry)
    assert live.rope_theta == pytest.approx(base, rel=1e-5)
    assert (live.base_rope_type, live.live_factors) == ("default", None)
    assert live.configured_factors(512) is None
    assert any("base" in note for note in live.notes)
    torch.testing.assert_close(live.inverse_frequencies(), base ** (-torch.arange(0, 16, 2) / 16), rtol=1e-5, atol=0)


def test_other_frequencies_count_as_configured() -> None:
    """A model that its code scales: what it computes is among the closed forms, and is the model itself."""
    model = tiny_model("llama")
    own = closed_form("llama3", read_geometry(model.config), 256)
    plain = read_geometry(model.config).inverse_frequencies()
    geometry = set_frequencies(model, plain / torch.tensor(own.rescale_factors), attention=1.2)
    live = with_live_frequencies(model, geometry)
    assert live.base_rope_type == "live"
    assert live.rope_theta == geometry.rope_theta
    configured = closed_forms(live, 512)["as-configured"]
    assert configured.rescale_factors == pytest.approx(own.rescale_factors, rel=1e-6)
    assert configured.attention_factor == 1.2
    with Injector(model, live) as injector, injector.using([configured]):
        injected = logits(model)
    torch.testing.assert_close(injected, logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("inverse", "words"),
    [
        ([1.0, 0.5, float("nan")], "not finite"),
        ([1.0, 0.5, 0.0], "not all above 0"),
        ([1.0, 0.5, 0.7], "do not decrease"),
        ([3.0, 0.5, 0.1], "do not decrease from 1"),
        ([1.0, 1.0, 0.1], "do not decrease"),
    ],
)
def test_frequencies_that_are_not_those_of_rope(inverse: list[float], words: str) -> None:
    model = tiny_model("llama", hidden_size=24)
    geometry = set_frequencies(model, torch.tensor(inverse))
    with pytest.raises(UnsupportedModelError, match=words):
        with_live_frequencies(model, geometry)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_that_change_with_the_length_must_be_known(rope_type: str) -> None:
    model = tiny_model("llama", rope_scaling=scaling(rope_type, 8), max_position_embeddings=128)
    geometry = set_frequencies(model, torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.003, 0.002]))
    with pytest.raises(UnsupportedModelError, match="may change with the length"):
        with_live_frequencies(model, geometry)


def test_modules_with_different_frequencies() -> None:
    model = tiny_model("llama")
    other = tiny_model("llama", rope_theta=50_000.0).model.rotary_emb
    model.model.layers[0].own_rotary = other
    with pytest.raises(UnsupportedModelError, match="different frequencies"):
        with_live_frequencies(model, read_geometry(model.config))


def test_a_wrong_number_of_frequencies() -> None:
    model = tiny_model("llama")
    with pytest.raises(UnsupportedModelError, match=r"\(8,\) inverse frequencies, but its configuration says 4"):
        with_live_frequencies(model, replace(read_geometry(model.config), rotary_dim=8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_buffers_in_half_precision_agree(dtype: torch.dtype) -> None:
    model = tiny_model("llama")
    geometry = read_geometry(model.config)
    model.model.rotary_emb.to(dtype)
    assert model.model.rotary_emb.inv_freq.dtype == dtype
    assert with_live_frequencies(model, geometry) is geometry


OWN_CODE = """
import torch
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    @classmethod
    def from_pretrained(cls, *arguments, **options):
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.model.rotary_emb.inv_freq.copy_(500_000.0 ** (-torch.arange(0, 16, 2) / 16))
        return loaded
"""


def with_own_code(folder: Path) -> Path:
    """A checkpoint whose Python code rotates with a base of 500,000, of which its configuration says nothing."""
    save_checkpoint(tiny_model("llama", vocab_size=257), folder)
    (folder / "configuration_own.py").write_text(
        'from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = "own_llama"\n'
    )
    (folder / "modeling_own.py").write_text(OWN_CODE)
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_search_starts_from_the_live_frequencies(tmp_path: Path, texts: Path) -> None:
    folder = with_own_code(tmp_path / "model")
    model = {"id": str(folder), "trust_remote_code": True}
    loaded = load_model(ModelSpec(**model))  # type: ignore[arg-type]
    assert loaded.geometry.rope_theta == pytest.approx(500_000.0, rel=1e-5)
    part = {"search_documents": 1, "validation_documents": 1, "held_out_documents": 1}
    job = {"model": model, "data": {"files": [f"{texts}/*.txt"], **part}, "target_length": 128, "budget": 9}
    found = build_factors_file(run_job(parse_spec(job), tmp_path / "out"))
    assert found.model.rope_theta == loaded.geometry.rope_theta


def test_the_model_loaded_from_a_folder_is_checked(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model("hunyuan_v1_dense", vocab_size=257, **ALPHA), tmp_path / "model")
    loaded = load_model(ModelSpec(id=str(folder)))
    own = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.geometry == read_geometry(AutoConfig.from_pretrained(folder))
    with Injector(loaded.model, loaded.geometry) as injector, injector.using([Factors.of([1.0] * 8)]):
        injected = logits(loaded.model)
    torch.testing.assert_close(injected, logits(own), rtol=0, atol=1e-5)


def test_code_of_an_earlier_checkpoint_is_not_used(tmp_path: Path) -> None:
    """Transformers ties modeling code to the class of a configuration, which two checkpoints may share."""
    folders = [with_own_code(tmp_path / name) for name in ("first", "second")]
    code = folders[1] / "modeling_own.py"
    code.write_text(code.read_text().replace("500_000.0", "700_000.0"))
    for folder, base in zip(folders, (500_000.0, 700_000.0), strict=True):
        loaded = load_model(ModelSpec(id=str(folder), trust_remote_code=True))
        assert loaded.geometry.rope_theta == pytest.approx(base, rel=1e-5)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_model_that_has_read_a_long_text(rope_type: str) -> None:
    """Its frequencies are those of that text, until a shorter one comes."""
    model = tiny_model("llama", rope_scaling=scaling(rope_type, 8), max_position_embeddings=64)
    geometry = read_geometry(model.config)
    before = model.model.rotary_emb.inv_freq.clone()
    logits(model, 200)
    assert not torch.allclose(model.model.rotary_emb.inv_freq, before)
    assert with_live_frequencies(model, geometry) is geometry


def test_scaling_that_transformers_cannot_compute() -> None:
    """Mixtral's configuration without head_dim: a key without value."""
    config = AutoConfig.for_model("mixtral", **SMALL, rope_scaling=scaling("yarn", 8))
    with pytest.raises(UnsupportedModelError, match="cannot compute RoPE type 'yarn'"):
        closed_forms(read_geometry(config), 256)
