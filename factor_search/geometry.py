"""A model's rotary geometry, read from its configuration alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factor_search.errors import UnsupportedModelError
from factor_search.factors import Factors

SEARCHED_LAYER_TYPE = "full_attention"
"""Where RoPE differs by layer type, sliding-window layers never see a distance beyond their window; these ones do."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What the formulas need to know of a model's RoPE."""

    architecture: str
    """The model class named in the configuration, for messages and records."""
    rope_theta: float
    """Base of the geometric series theta_i = rope_theta^(-2i/d)."""
    rotary_dim: int
    """d: rotary dimensions of a head; d / 2 pairs."""
    original_length: int
    """L: tokens of context the model was trained for, before any scaling."""
    configured_length: int
    """Tokens of context the configuration promises, scaling included."""
    base_rope_type: str
    """RoPE type the configuration already has (``default``, ``llama3``, ``yarn``, ...)."""
    layer_type: str | None = None
    """The layer type whose RoPE is meant, for models with several."""
    rotated_pairs: int | None = None
    """How many leading pairs rotate at all, where the RoPE type leaves some fixed; None means all of them."""
    config: PretrainedConfig = field(repr=False, compare=False)
    """The text configuration all this was read from."""

    @property
    def pairs(self) -> int:
        """d / 2: the number of rescale factors."""
        return self.rotary_dim // 2

    def inverse_frequencies(self, rescale_factors: Sequence[float] | None = None) -> Tensor:
        """theta_i / lambda_i as float32 of shape (pairs,), in transformers' own order of operations for longrope.

        That order makes an exported configuration bit-identical to the candidate that was evaluated.
        """
        exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.int64).float() / self.rotary_dim
        factors = torch.tensor(rescale_factors or [1.0] * self.pairs, dtype=torch.float32)
        inverse = 1.0 / (factors * self.rope_theta**exponents)
        if self.rotated_pairs is not None:
            inverse[self.rotated_pairs :] = 0.0
        return inverse

    @property
    def wavelengths(self) -> list[float]:
        """2 pi / theta_i in tokens, one for each pair."""
        return [2 * math.pi * self.rope_theta ** (2 * i / self.rotary_dim) for i in range(self.pairs)]

    @property
    def critical_dimension(self) -> int:
        """d_tcd = 2 ceil((d/2) log_base(L / 2 pi)): dimensions from here on never completed a period in training.

        LongRoPE2, 2502.20082, eq. 3. Clipped to [0, d].
        """
        turns = math.log(self.original_length / (2 * math.pi), self.rope_theta)
        return min(max(2 * math.ceil(self.pairs * turns), 0), self.rotary_dim)

    def configured_factors(self, target_length: int) -> Factors | None:
        """The scaling the configuration already has, as factors relative to the plain theta_i; None if it has none.

        For models with a llama3, yarn or longrope type this is the model as it is.
        """
        if self.base_rope_type in ("default", "proportional"):
            return None
        initialise = ROPE_INIT_FUNCTIONS[self.base_rope_type]
        inverse, attention_factor = initialise(self.config, None, seq_len=target_length, layer_type=self.layer_type)
        return Factors.of((self.inverse_frequencies() / inverse).tolist(), 0, attention_factor)


def read_geometry(config: PretrainedConfig, original_length: int | None = None) -> Geometry:
    """Read the rotary geometry of any transformers configuration.

    Args:
        config: of a whole model; a multi-modal one answers for its text part.
        original_length: the tokens the model was trained for, where the configuration does not say so truly.

    Raises:
        UnsupportedModelError: the configuration has no rotary position embeddings, or of a kind not known here.
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
    head_dim = _head_dim(_layer_config(text_config, layer_type))
    share = parameters.get("partial_rotary_factor") or 1.0
    proportional = rope_type == "proportional"
    rotary_dim = head_dim if proportional else int(head_dim * share)
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
        rotated_pairs=int(share * head_dim // 2) if proportional else None,
        config=text_config,
    )


def _searched_parameters(
    config: PretrainedConfig, rope_parameters: Mapping[str, Any], architecture: str
) -> tuple[str | None, Mapping[str, Any]]:
    """The RoPE parameters to search, and their layer type where the configuration keeps several."""
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
    """The configuration of one layer type, for the few models whose layer types differ in shape (gemma4)."""
    if layer_type is None or not getattr(config, "is_heterogeneous", False):
        return config
    return config.per_layer_config[layer_type]


def _head_dim(config: PretrainedConfig) -> int:
    """Width of the part of a head that RoPE can act on."""
    for name in ("qk_rope_head_dim", "head_dim"):  # multi-head latent attention rotates a part of its own
        value = getattr(config, name, None)
        if value:
            return int(value)
    return int(config.hidden_size // config.num_attention_heads)


def _lengths(config: PretrainedConfig, parameters: Mapping[str, Any]) -> tuple[int, int]:
    """(original, configured) context lengths in tokens."""
    configured = getattr(config, "max_position_embeddings", None)
    # A top-level value overrides the nested one, as in transformers.
    original = getattr(config, "original_max_position_embeddings", None) or parameters.get(
        "original_max_position_embeddings"
    )
    original = original or configured
    if not original:
        raise UnsupportedModelError(
            "the configuration gives no max_position_embeddings: the original length is unknown"
        )
    return int(original), int(configured or original)
