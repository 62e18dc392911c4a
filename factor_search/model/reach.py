"""How far the rotated layers of a model see: factors cannot lengthen a sliding window.

Whether a layer rotates and how far it sees is read from the configuration. Transformers says most of it by layer type;
the tables below hold what it only says in the code of single models.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig

WINDOWED = frozenset(
    {
        *("mistral", "mixtral", "ministral3", "phi3", "phimoe", "phi4_multimodal", "starcoder2"),
        *("qwen3_moe", "doge", "voxtral_realtime_text"),
    }
)
"""Model types without layer types, in which ``sliding_window`` is the window of all layers."""
ROTATES_WINDOWS_ONLY = frozenset(
    {
        *("afmoe", "cohere2", "exaone4", "exaone_moe", "flint", "kolibri1"),
    }
)
"""Model types in which layers with full attention do not rotate, if the configuration has a window."""
WITHOUT_ROTATION = frozenset({"linear_attention", "mamba", "conv", "moe"})
"""Layer types without softmax attention, which do not rotate."""
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Layer types with a window, and the key of its size in tokens."""


def rotated_reach(config: PretrainedConfig) -> int | None:
    """Return how many tokens the farthest seeing layer with RoPE sees, itself included; None if it sees all.

    Where a configuration does not say it, a layer counts as rotated and as seeing all tokens.

    Args:
        config: configuration of the language model.
    """
    try:
        windows = list(_rotated_windows(config))
    except RuntimeError:  # what transformers raises for a value that layers do not share, where values differ by layer
        return None
    if not windows or None in windows:
        return None
    return max(window for window in windows if window is not None)


def _rotated_windows(config: PretrainedConfig) -> Iterator[int | None]:
    """Yield the window of each layer with RoPE in tokens; None of one that sees all."""
    layer_types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or None
    if not layer_types:
        yield window if config.model_type in WINDOWED else None
        return
    rotated = _rotated(config, list(layer_types))
    for layer_type, rotates in zip(layer_types, rotated, strict=True):
        if rotates:
            yield getattr(config, WINDOWS[layer_type], None) or None if layer_type in WINDOWS else None


def _rotated(config: PretrainedConfig, layer_types: list[str]) -> list[bool]:
    """Return for each layer whether it rotates."""
    by_layer = _by_layer(config, len(layer_types))
    parameters = getattr(config, "rope_parameters", None) or {}
    by_type = isinstance(parameters, Mapping) and any(one in parameters for one in layer_types)
    windows_only = config.model_type in ROTATES_WINDOWS_ONLY and bool(getattr(config, "sliding_window", None))

    def rotates(layer_type: str, own: bool) -> bool:
        if layer_type in WITHOUT_ROTATION or (by_type and not parameters.get(layer_type)):
            return False
        return own and (not windows_only or layer_type in WINDOWS)

    return [rotates(layer_type, own) for layer_type, own in zip(layer_types, by_layer, strict=True)]


def _by_layer(config: PretrainedConfig, layers: int) -> list[bool]:
    """Return what lists by layer say: ``no_rope_layers`` has 1 for a layer with RoPE, ``layer_rope_theta`` a base."""
    for name in ("no_rope_layers", "layer_rope_theta"):
        values: Any = getattr(config, name, None)
        if isinstance(values, list | tuple) and len(values) == layers:
            return [bool(value) for value in values]
    return [True] * layers
