"""Reads the rotary geometry from a transformers configuration."""

import math
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factor_search.errors import FactorSearchError, UnsupportedModelError, one_line
from factor_search.model.auto_class import architecture_of, why_not_loadable
from factor_search.model.configuration_values import LONGEST_CONTEXT, WIDEST_HEAD
from factor_search.model.geometry import Geometry
from factor_search.model.reach import rotated_reach

LEAST_LENGTH = 8
"""Tokens; formulas have no meaning below the shortest wavelength, which is 2 pi tokens."""
LEAST_TRAINED_LENGTH = 2048
"""No published language model with linear scaling was trained for fewer tokens before it."""
OVERRIDES = '--original-length, or "original_length" of the model in a specification, overrides it'
SEARCHED_LAYER_TYPE = "full_attention"
"""The layer type to search where RoPE differs by layer type: other layers attend within a sliding window only."""


def read_geometry(config: PretrainedConfig, original_length: int | None = None) -> Geometry:
    """Read the rotary geometry of any transformers configuration.

    Args:
        config: configuration of a whole model; for a multi-modal model, the text part is used.
        original_length: tokens the model was trained for; overrides a wrong value in the configuration.

    Raises:
        UnsupportedModelError: the configuration has no rotary position embeddings, their type is not supported, or its
            values do not fit together.
    """
    try:
        geometry = _geometry(config, original_length)
    except FactorSearchError:
        raise
    except Exception as error:  # whatever the values of a configuration make of a formula
        raise UnsupportedModelError(
            f"the configuration of {architecture_of(config)} describes no RoPE ({one_line(error)}): correct "
            "its config.json"
        ) from error
    for name, value, least, most in (
        ("a rotary dimension", geometry.rotary_dim, 2, WIDEST_HEAD),
        ("an original length in tokens", geometry.original_length, LEAST_LENGTH, LONGEST_CONTEXT),
        ("a length in tokens", geometry.configured_length, LEAST_LENGTH, LONGEST_CONTEXT**2),
    ):
        if not least <= value <= most:
            raise UnsupportedModelError(
                f"the configuration of {geometry.architecture} gives {name} of {value}, which is not from {least} to "
                f"{most}: correct its config.json"
            )
    return geometry


def _geometry(config: PretrainedConfig, original_length: int | None) -> Geometry:
    text_config = config.get_text_config(decoder=True)
    architecture = architecture_of(config)
    rope_parameters = getattr(text_config, "rope_parameters", None)
    if not rope_parameters:
        raise UnsupportedModelError(
            f"{architecture} has no RoPE parameters in its configuration (model type {config.model_type!r}): "
            "rescale factors need a model with rotary position embeddings that the configuration describes"
        )
    layer_type, parameters = _searched_parameters(text_config, rope_parameters, architecture)
    rope_type = parameters.get("rope_type", "default")
    if rope_type != "default" and rope_type not in ROPE_INIT_FUNCTIONS:
        raise UnsupportedModelError(f"{architecture} uses RoPE type {rope_type!r}, which cannot be searched")
    share = parameters.get("partial_rotary_factor") or 1.0
    if share > 1:
        raise UnsupportedModelError(
            f"the configuration of {architecture} has the partial_rotary_factor {share:g}, a share of a head above 1: "
            "correct its config.json"
        )
    width = head_dim(layer_config(text_config, layer_type), share)
    proportional = rope_type == "proportional"
    rotary_dim = width if proportional else int(width * share)
    odd = rotary_dim % 2  # transformers rounds an odd partial rotary dimension up, but not in the exponents
    rotary_dim += odd
    theta, notes = _rope_theta(parameters, architecture), []
    if rope_type == "dynamic" and parameters.get("alpha") and config.model_type.startswith("hunyuan"):
        alpha = float(parameters["alpha"])
        theta, rope_type = theta * alpha ** (rotary_dim / (rotary_dim - 2)), "default"  # as in its modeling code
        notes.append(f"alpha {alpha:g} of the configuration is a fixed larger base, which counts as rope_theta")
    original, configured, stated = _lengths(text_config, parameters)
    if rope_type == "linear" and original_length is None and not stated:
        original, configured, note = _linear_lengths(text_config, parameters, original)
        notes.append(note)
    elif original == configured and rope_type != "default":  # the scaling reaches further, as in Qwen2.5 with YaRN
        factor = max(parameters.get("factor") or 1.0, 1.0)
        if original_length is None and factor > 1:
            notes.append(
                f"max_position_embeddings, {original}, is taken for the original length, before the {rope_type} factor "
                f"{factor:g}: if it includes the factor, give --original-length {round(original / factor)}, or "
                '"original_length" of the model in a specification'
            )
        configured = round(original * factor)
    return Geometry(
        architecture=architecture,
        rope_theta=theta,
        rotary_dim=rotary_dim,
        original_length=original_length or original,
        configured_length=configured,
        base_rope_type=rope_type,
        odd=bool(odd),
        layer_type=layer_type,
        rotated_pairs=int(share * width // 2) if proportional else None,
        reach=rotated_reach(text_config),
        not_loadable=why_not_loadable(config),
        notes=tuple(notes),
        config=text_config,
    )


def _rope_theta(parameters: Mapping[str, Any], architecture: str) -> float:
    """Return the base of the frequencies.

    Raises:
        UnsupportedModelError: the configuration gives no number above 1.
    """
    value = parameters.get("rope_theta")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < math.inf:
        raise UnsupportedModelError(
            f"the configuration of {architecture} has the rope_theta {value!r}, which is not a number above 1: set it "
            "in the model's config.json"
        )
    return float(value)


def _searched_parameters(
    config: PretrainedConfig, rope_parameters: Mapping[str, Any], architecture: str
) -> tuple[str | None, Mapping[str, Any]]:
    """Return the layer type to search (None if there is only one) and its RoPE parameters."""
    nested = {key: value for key, value in rope_parameters.items() if isinstance(value, Mapping)}
    if "rope_theta" in rope_parameters or not nested:
        return None, rope_parameters
    used = set(getattr(config, "layer_types", None) or ())
    nested = {key: value for key, value in nested.items() if key in used} or nested
    if SEARCHED_LAYER_TYPE in nested:
        return SEARCHED_LAYER_TYPE, nested[SEARCHED_LAYER_TYPE]
    if len(nested) == 1:
        return next(iter(nested.items()))
    raise UnsupportedModelError(
        f"{architecture} has RoPE parameters for {sorted(nested)}, none of them {SEARCHED_LAYER_TYPE!r}"
    )


def layer_config(config: PretrainedConfig, layer_type: str | None) -> PretrainedConfig:
    """Return the configuration of one layer type; in a few models layer types differ in shape (gemma4)."""
    if layer_type is None or not getattr(config, "is_heterogeneous", False):
        return config
    return config.per_layer_config[layer_type]


def head_dim(config: PretrainedConfig, share: float = 1.0) -> int:
    """Return the width of the part of a head of which RoPE rotates the given share.

    Raises:
        UnsupportedModelError: the configuration does not say.
    """
    whole, rotary = (getattr(config, name, None) or 0 for name in ("head_dim", "qk_rope_head_dim"))
    if rotary and int(whole * share) != rotary:  # multi-head latent attention has a separate rotary part
        return int(rotary)
    if whole:
        return int(whole)
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not width or not heads:
        raise UnsupportedModelError(
            f"the configuration of model type {config.model_type!r} gives neither head_dim nor hidden_size and "
            "num_attention_heads, so the number of rotary pairs is unknown"
        )
    return int(width // heads)


def _lengths(config: PretrainedConfig, parameters: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Return the original and the configured context length in tokens, and whether the original one is stated."""
    configured = getattr(config, "max_position_embeddings", None)
    # In transformers, a top-level value overrides the nested one.
    original = getattr(config, "original_max_position_embeddings", None) or parameters.get(
        "original_max_position_embeddings"
    )
    stated, original = bool(original), original or configured
    if not original:
        raise UnsupportedModelError(
            "the configuration gives no max_position_embeddings, so the original length is unknown: set "
            "model.original_length"
        )
    return int(original), int(configured or original), stated


def _linear_lengths(config: PretrainedConfig, parameters: Mapping[str, Any], length: int) -> tuple[int, int, str]:
    """Return the original and the configured length of a model with linear scaling, and what was assumed.

    Nothing in a configuration says whether max_position_embeddings includes the factor. In most published models it
    does; if it did not, the closed forms would be weaker than the model as it is.
    """
    factor = parameters.get("factor") or 1.0
    stated = getattr(config, "max_sequence_length", None) or 0  # vicuna-16k has it beside max_position_embeddings
    divided = length / factor
    apart = factor <= 1 or divided != int(divided) or divided < LEAST_LENGTH or divided < LEAST_TRAINED_LENGTH <= length
    named, overridden = f"max_position_embeddings, {length}, is taken", OVERRIDES
    if apart or stated >= length * factor:
        note = f"{named} for the original length, before the linear factor {factor:g}: {overridden}"
        return length, round(length * max(factor, 1.0)), note
    note = f"{named} to include the linear factor {factor:g}, so the original length is {int(divided)}: {overridden}"
    return int(divided), length, note
