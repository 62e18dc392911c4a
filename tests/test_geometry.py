import math

import pytest
import torch
from transformers import AutoConfig

from factor_search.errors import UnsupportedModelError
from factor_search.model.configuration import read_geometry
from tests.families import FAMILIES, SMALL, tiny_model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_frequencies_are_those_of_the_live_model(model_type: str) -> None:
    model = tiny_model(model_type)
    geometry = read_geometry(model.config)
    prefix = f"{geometry.layer_type}_" if geometry.layer_type else ""
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith(f"rotary_emb.{prefix}inv_freq")]
    assert buffers
    for buffer in buffers:
        if geometry.base_rope_type in ("default", "proportional"):
            torch.testing.assert_close(geometry.inverse_frequencies(), buffer, rtol=1e-6, atol=0)
        else:
            configured = geometry.configured_factors(geometry.configured_length)
            assert configured is not None
            torch.testing.assert_close(
                geometry.inverse_frequencies(configured.rescale_factors), buffer, rtol=1e-5, atol=0
            )


def llama_config(**settings: object):
    return AutoConfig.for_model("llama", **(SMALL | settings))


def test_explicit_head_dim_and_partial_rotary() -> None:
    assert read_geometry(llama_config(head_dim=40)).rotary_dim == 40
    assert read_geometry(llama_config()).rotary_dim == 16
    stablelm = AutoConfig.for_model("stablelm", **SMALL, partial_rotary_factor=0.5)
    assert read_geometry(stablelm).rotary_dim == 8


def test_legacy_spelling_of_rope_parameters() -> None:
    geometry = read_geometry(
        llama_config(
            rope_theta=500_000.0,
            max_position_embeddings=131_072,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        )
    )
    assert (geometry.rope_theta, geometry.base_rope_type) == (500_000.0, "llama3")
    assert (geometry.original_length, geometry.configured_length) == (8192, 131_072)


def test_top_level_original_length_wins() -> None:
    config = AutoConfig.for_model(
        "phi3",
        **(SMALL | {"max_position_embeddings": 4096}),
        original_max_position_embeddings=2048,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    )
    assert read_geometry(config).original_length == 2048


def test_the_user_may_know_the_original_length_better() -> None:
    assert read_geometry(llama_config(), original_length=32).original_length == 32


def test_layer_types_search_full_attention() -> None:
    geometry = read_geometry(tiny_model("gemma3_text").config)
    assert (geometry.layer_type, geometry.rope_theta) == ("full_attention", 1_000_000.0)


def test_multimodal_configuration_answers_for_its_text_part() -> None:
    config = AutoConfig.for_model("gemma3")
    assert read_geometry(config).rotary_dim == config.text_config.head_dim


@pytest.mark.parametrize(
    ("base", "head_dim", "length", "pair"),
    [(10_000.0, 96, 2048, 31), (500_000.0, 128, 8192, 35)],
    ids=["Phi3-mini", "LLaMA3-8B"],
)
def test_critical_dimension_as_published(base: float, head_dim: int, length: int, pair: int) -> None:
    """LongRoPE2 (2502.20082) names these two."""
    config = llama_config(head_dim=head_dim, rope_theta=base, max_position_embeddings=length)
    assert read_geometry(config).critical_dimension == 2 * pair


def test_critical_pair_is_the_first_whose_wavelength_exceeds_the_original_length() -> None:
    geometry = read_geometry(llama_config(head_dim=64, max_position_embeddings=256))
    first = next(i for i, wavelength in enumerate(geometry.wavelengths) if wavelength > 256)
    assert geometry.critical_dimension == 2 * first
    assert math.isclose(geometry.wavelengths[0], 2 * math.pi)


@pytest.mark.parametrize("model_type", ["gptj", "codegen", "mpt", "gpt2", "bloom"])
def test_models_without_configured_rope_are_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match="no RoPE parameters"):
        read_geometry(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("value", [None, [10_000.0], "a", 1, math.inf, True], ids=str)
def test_a_base_that_is_not_a_number_above_1(value: object) -> None:
    config = llama_config()
    config.rope_parameters["rope_theta"] = value
    with pytest.raises(UnsupportedModelError, match=r"rope_theta .*, which is not a number above 1: set it") as error:
        read_geometry(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rope_type", ["yarn", "dynamic"])
def test_scaling_of_a_length_that_stands_for_both(rope_type: str) -> None:
    """Qwen2.5's documentation asks for this, and leaves max_position_embeddings as it is."""
    rope = {"type": rope_type, "factor": 4.0}
    geometry = read_geometry(llama_config(max_position_embeddings=32_768, rope_scaling=rope))
    assert (geometry.original_length, geometry.configured_length) == (32_768, 131_072)


def test_configuration_without_the_width_of_its_heads() -> None:
    """The byte latent transformer is several models."""
    with pytest.raises(UnsupportedModelError, match="number of rotary pairs is unknown"):
        read_geometry(AutoConfig.for_model("blt"))


def test_share_of_a_head_that_is_its_rotary_part() -> None:
    """Mistral 4: qk_rope_head_dim is half of head_dim, as the partial rotary factor says again."""
    settings = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 32, "v_head_dim": 16}
    config = AutoConfig.for_model("mistral4", **(SMALL | settings))
    assert config.head_dim == 16
    assert read_geometry(config).rotary_dim == 8
