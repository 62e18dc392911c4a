import math

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from factor_search.errors import FactorsError, UnsupportedModelError
from factor_search.factors import Factors
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.model.injection import Injector, probe
from tests.families import FAMILIES, SMALL, tiny_model

LENGTH = 48


def candidates(geometry: Geometry) -> list[Factors]:
    return [
        Factors.of([1 + j * 0.3 * (i + 1) for i in range(geometry.pairs)], initial, 1 + 0.1 * j)
        for j, initial in ((1, 0), (2, 5), (3, 1))
    ]


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def ids(rows: int) -> Tensor:
    return torch.randint(3, 95, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def assert_batch_equals_one_at_a_time(
    model: PreTrainedModel, injector: Injector, tokens: Tensor, rows: list[Factors]
) -> None:
    """And every candidate reaches the logits."""
    before = logits(model, tokens)
    with injector.using(rows):
        batched = logits(model, tokens)
    for number, factors in enumerate(rows):
        row = slice(number, number + 1)
        with injector.using([factors]):
            alone = logits(model, tokens[row])
        torch.testing.assert_close(batched[row], alone, rtol=0, atol=1e-5)
        assert not torch.equal(alone, before[row])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family(model_type: str) -> None:
    model = tiny_model(model_type)
    geometry = read_geometry(model.config)
    probe(model, geometry)
    tokens = ids(3)
    before = logits(model, tokens)
    with Injector(model, geometry) as injector:
        assert_batch_equals_one_at_a_time(model, injector, tokens, candidates(geometry))
        assert torch.equal(logits(model, tokens), before), "outside of using() the model is itself"
        with injector.using([Factors.of([7.0] * geometry.pairs, LENGTH, 3.0)]):
            assert torch.equal(logits(model, tokens), before), "all tokens initial: the original RoPE"
    assert torch.equal(logits(model, tokens), before)
    assert all("forward" not in module.__dict__ for module in model.modules())


def multimodal() -> PreTrainedModel:
    """Qwen2.5-VL keeps three positions for each token, and its rotations have that axis in front of the batch."""
    config = AutoConfig.for_model("qwen2_5_vl")
    text, vision = config.get_text_config(decoder=True), config.vision_config
    for name, value in (SMALL | {"layer_types": ["full_attention"] * 2}).items():
        setattr(text, name, value)
    text.rope_parameters["mrope_section"] = [2, 3, 3]
    for name in ("hidden_size", "out_hidden_size", "intermediate_size"):
        setattr(vision, name, 64)
    vision.depth, vision.num_heads, config.image_token_id, config.video_token_id = 1, 4, 95, 96
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def test_multi_axis_positions_of_a_multimodal_model() -> None:
    model = multimodal()
    geometry = read_geometry(model.config)
    probe(model, geometry)
    tokens, rows = ids(3), candidates(geometry)
    before = logits(model, tokens)
    with Injector(model, geometry) as injector:
        assert_batch_equals_one_at_a_time(model, injector, tokens, rows)
        with injector.using([Factors.of([7.0] * geometry.pairs, LENGTH, 3.0)]):
            assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("model_type", ["phimoe"])
def test_models_that_ignore_factors_are_refused(model_type: str) -> None:
    model = tiny_model(model_type, num_local_experts=4)
    with pytest.raises(UnsupportedModelError, match="ignores rescale factors"):
        probe(model, read_geometry(model.config))


def test_a_model_without_rotary_buffers_is_refused() -> None:
    gptj = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gptj", vocab_size=97, n_embd=64, n_layer=1, n_head=4, rotary_dim=8)
    )
    with pytest.raises(UnsupportedModelError, match="no rotary module"):
        probe(gptj, read_geometry(tiny_model("llama").config))


def test_a_geometry_that_does_not_fit_is_refused() -> None:
    other = read_geometry(AutoConfig.for_model("llama", **SMALL, head_dim=32))
    with pytest.raises(UnsupportedModelError, match="inverse frequencies"):
        Injector(tiny_model("llama"), other)


def test_factors_of_the_wrong_length_are_refused() -> None:
    model = tiny_model("llama")
    with (
        Injector(model, read_geometry(model.config)) as injector,
        pytest.raises(FactorsError, match="3 rescale factors"),
        injector.using([Factors.of([1.0] * 3)]),
    ):
        pass


def test_rotation_is_the_formula_in_float64() -> None:
    """cos and sin of every position and pair against a plain loop over LongRoPE's eq. 3."""
    model = tiny_model("llama", rope_theta=5000.0)
    geometry = read_geometry(model.config)
    factors = Factors.of([1.0 + 0.5 * i for i in range(geometry.pairs)], initial_tokens=6, attention_factor=1.25)
    rotary = model.model.rotary_emb
    positions = torch.arange(20)[None]
    with Injector(model, geometry) as injector, injector.using([factors]):
        cos, sin = rotary(torch.zeros(1, 20, 64), positions)
    for n in range(20):
        for i in range(geometry.pairs):
            theta = 5000.0 ** (-2 * i / geometry.rotary_dim)
            initial = n < 6
            angle = n * theta if initial else n * theta / factors.rescale_factors[i]
            scale = 1.0 if initial else 1.25
            for half in (0, geometry.pairs):  # Llama keeps the two halves of a head apart
                assert cos[0, n, i + half].item() == pytest.approx(scale * math.cos(angle), abs=3e-6)
                assert sin[0, n, i + half].item() == pytest.approx(scale * math.sin(angle), abs=3e-6)


def test_same_as_transformers_own_longrope() -> None:
    """The independent source: a model configured with the factors and no injector."""
    factors = Factors.of([1.0 + 0.7 * i for i in range(8)], attention_factor=1.3)
    plain = tiny_model("llama")
    configured = tiny_model(
        "llama",
        max_position_embeddings=512,
        rope_scaling={
            "rope_type": "longrope",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "short_factor": list(factors.rescale_factors),
            "long_factor": list(factors.rescale_factors),
            "attention_factor": 1.3,
        },
    )
    configured.load_state_dict(plain.state_dict())
    tokens = torch.randint(3, 97, (1, 300))
    with Injector(plain, read_geometry(plain.config)) as injector, injector.using([factors]):
        assert torch.equal(logits(plain, tokens), logits(configured, tokens))


@pytest.mark.parametrize("rope_type", ["dynamic", "yarn", "llama3", "longrope", "linear"])
def test_models_that_are_already_scaled(rope_type: str) -> None:
    """Factors are relative to the plain frequencies; the initial tokens keep what the configuration says."""
    rope = {"rope_type": rope_type, "factor": 4.0}
    if rope_type in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = 16
    if rope_type == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    scaled, plain = tiny_model("llama", rope_scaling=rope), tiny_model("llama")
    geometry = read_geometry(scaled.config)
    probe(scaled, geometry)
    tokens = ids(1)
    before = logits(scaled, tokens)
    factors = Factors.of([1 + i for i in range(8)], attention_factor=1.2)
    with Injector(scaled, geometry) as injector, injector.using([factors]):
        on_scaled = logits(scaled, tokens)
    with Injector(plain, read_geometry(plain.config)) as injector, injector.using([factors]):
        torch.testing.assert_close(on_scaled, logits(plain, tokens))
    with Injector(scaled, geometry) as injector:
        with injector.using([Factors.of([5.0] * 8, LENGTH)]):
            assert torch.equal(logits(scaled, tokens), before)
        configured = geometry.configured_factors(LENGTH)
        assert configured is not None
        if rope_type != "dynamic":  # which is not scaled at this length
            with injector.using([configured]):
                torch.testing.assert_close(logits(scaled, tokens), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(scaled, tokens), before)


def test_initial_tokens_count_positions_not_rows_of_the_batch() -> None:
    """A window that starts late in a document begins again at position 0; explicit positions are honoured."""
    model = tiny_model("llama")
    geometry = read_geometry(model.config)
    factors = Factors.of([4.0] * geometry.pairs, initial_tokens=10)
    tokens = ids(1)
    late = torch.arange(100, 100 + LENGTH)[None]
    with Injector(model, geometry) as injector, torch.inference_mode():
        with injector.using([factors]):
            with_initial = model(input_ids=tokens, position_ids=late).logits
        with injector.using([Factors.of([4.0] * geometry.pairs)]):
            without = model(input_ids=tokens, position_ids=late).logits
    assert torch.equal(with_initial, without)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = logits(model, ids(1))
    geometry = read_geometry(model.config)
    with (
        pytest.raises(RuntimeError, match="boom"),
        Injector(model, geometry) as injector,
        injector.using([Factors.of([9.0] * geometry.pairs)]),
    ):
        raise RuntimeError("boom")
    assert torch.equal(logits(model, ids(1)), before)
