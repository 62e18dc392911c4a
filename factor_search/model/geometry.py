"""A model's rotary geometry: a value that is stored and sent without torch, which only its tensors need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from factor_search.factors import Factors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig


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
    config: "PretrainedConfig" = field(repr=False, compare=False)
    """The text configuration all this was read from."""

    @property
    def pairs(self) -> int:
        """d / 2: the number of rescale factors."""
        return self.rotary_dim // 2

    def inverse_frequencies(self, rescale_factors: Sequence[float] | None = None) -> "Tensor":
        """theta_i / lambda_i as float32 of shape (pairs,), in transformers' own order of operations for longrope.

        That order makes an exported configuration bit-identical to the candidate that was evaluated.
        """
        import torch

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
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        initialise = ROPE_INIT_FUNCTIONS[self.base_rope_type]
        inverse, attention_factor = initialise(self.config, None, seq_len=target_length, layer_type=self.layer_type)
        return Factors.of((self.inverse_frequencies() / inverse).tolist(), 0, attention_factor)
