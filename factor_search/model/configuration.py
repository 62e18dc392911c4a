"""Reads the rotary geometry from a transformers configuration."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factor_search.errors import UnsupportedModelError
from factor_search.model.geometry import Geometry

SEARCHED_LAYER_TYPE = "full_attention"
"""The layer type to search where RoPE differs by layer type: other layers attend within a sliding window only."""


def read_geometry(config: PretrainedConfig, original_length: int | None = None) -> Geometry:
    """Read the rotary geometry of any transformers configuration.

    Args:
        config: configuration of a whole model; for a multi-modal model, the text part is used.
        original_length: tokens the model was trained for; overrides a wrong value in the configuration.

    Raises:
        UnsupportedModelError: the configuration has no rotary position embeddings, or their type is not supported.
    """
    text_config = config.get_text_config(decoder=True)
    architecture = (config.architectures or [type(config).__name__])[0]
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
    width = head_dim(_layer_config(text_config, layer_type))
    share = parameters.get("partial_rotary_factor") or 1.0
    proportional = rope_type == "proportional"
    rotary_dim = width if proportional else int(width * share)
    rotary_dim += rotary_dim % 2  # transformers rounds an odd partial rotary dimension up
    original, configured = _lengths(text_config, parameters)
    return Geometry(
        architecture=architecture,
        rope_theta=float(parameters["rope_theta"]),
        rotary_dim=rotary_dim,
        original_length=original_length or original,
        configured_length=configured,
        base_rope_type=rope_type,
        layer_type=layer_type,
        rotated_pairs=int(share * width // 2) if proportional else None,
        config=text_config,
    )


def _searched_parameters(
    config: PretrainedConfig, rope_parameters: Mapping[str, Any], architecture: str
) -> tuple[str | None, Mapping[str, Any]]:
    """Return the layer type to search (None if there is only one) and its RoPE parameters."""
    nested = {key: value for key, value in rope_parameters.items() if isinstance(value, Mapping)}
    if "rope_theta" in rope_parameters or not nested:
        return None, rope_parameters
    if SEARCHED_LAYER_TYPE in nested:
        return SEARCHED_LAYER_TYPE, nested[SEARCHED_LAYER_TYPE]
    if len(nested) == 1:
        return next(iter(nested.items()))
    raise UnsupportedModelError(
        f"{architecture} has RoPE parameters for {sorted(nested)}, none of them {SEARCHED_LAYER_TYPE!r}"
    )


def _layer_config(config: PretrainedConfig, layer_type: str | None) -> PretrainedConfig:
    """Return the configuration of one layer type; in a few models layer types differ in shape (gemma4)."""
    if layer_type is None or not getattr(config, "is_heterogeneous", False):
        return config
    return config.per_layer_config[layer_type]


def head_dim(config: PretrainedConfig) -> int:
    """Return the width of the part of a head on which RoPE can act."""
    for name in ("qk_rope_head_dim", "head_dim"):  # multi-head latent attention has a separate rotary part
        value = getattr(config, name, None)
        if value:
            return int(value)
    return int(config.hidden_size // config.num_attention_heads)


def _lengths(config: PretrainedConfig, parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Return the original and the configured context length in tokens."""
    configured = getattr(config, "max_position_embeddings", None)
    # In transformers, a top-level value overrides the nested one.
    original = getattr(config, "original_max_position_embeddings", None) or parameters.get(
        "original_max_position_embeddings"
    )
    original = original or configured
    if not original:
        raise UnsupportedModelError(
            "the configuration gives no max_position_embeddings, so the original length is unknown: set "
            "model.original_length"
        )
    return int(original), int(configured or original)
