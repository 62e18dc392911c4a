"""A model's rotary geometry: a value that can be stored and sent without loading torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from factor_search.errors import UnsupportedModelError, one_line
from factor_search.factors import Factors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

TEXT_PARTS = ("text_config", "llm_config", "decoder")
"""Keys of the language model in the configuration of a multi-modal model."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The properties of a model's RoPE that the formulas need."""

    architecture: str
    """The model class named in the configuration, for messages and stored results."""
    rope_theta: float
    """Base of the geometric series theta_i = rope_theta^(-2i/d)."""
    rotary_dim: int
    """Rotary dimensions of a head, which form as many pairs as half of them."""
    original_length: int
    """L: tokens of context the model was trained for, before any scaling."""
    configured_length: int
    """Tokens of context that the configuration allows, including its scaling."""
    base_rope_type: str
    """RoPE type of the configuration (``default``, ``llama3``, ``yarn``, ...); ``live`` if ``live_factors`` count."""
    odd: bool = False
    """Whether a partial rotary factor gives an odd d, one below ``rotary_dim``; the last pair has one more."""
    layer_type: str | None = None
    """The layer type whose RoPE is rescaled, for models with several."""
    rotated_pairs: int | None = None
    """How many leading pairs rotate, where the RoPE type leaves the others fixed; None means all of them."""
    reach: int | None = None
    """Tokens that the farthest seeing layer with RoPE sees, itself included; None if it sees all."""
    live_factors: Factors | None = None
    """The scaling of the loaded model, where it is another than its configuration was read to mean."""
    not_loadable: str | None = field(default=None, repr=False, compare=False)
    """Why the model cannot be loaded for measuring, as a sentence without its full stop; None if it can."""
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """What was assumed or found while the geometry was read, one sentence each."""
    config: "PretrainedConfig" = field(repr=False, compare=False)
    """The text configuration from which the geometry was read."""

    @property
    def pairs(self) -> int:
        """The number of rotary pairs, d / 2, and of rescale factors."""
        return self.rotary_dim // 2

    @property
    def unscaled(self) -> Factors:
        """The factors of the plain RoPE: every lambda_i is 1."""
        return Factors.of([1.0] * self.pairs)

    @property
    def exponent_dim(self) -> int:
        """d in the exponents of theta_i = rope_theta^(-2i/d): the rotary dimensions before they are rounded up."""
        return self.rotary_dim - self.odd

    def inverse_frequencies(self, rescale_factors: Sequence[float] | None = None) -> "Tensor":
        """Return theta_i / lambda_i as float32 of shape (pairs,).

        The order of operations is that of longrope in transformers, so a model with the exported configuration computes
        bit for bit what was evaluated.
        """
        import torch

        exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.int64).float() / self.exponent_dim
        factors = torch.tensor(rescale_factors or [1.0] * self.pairs, dtype=torch.float32)
        inverse = 1.0 / (factors * self.rope_theta**exponents)
        if self.rotated_pairs is not None:
            inverse[self.rotated_pairs :] = 0.0
        return inverse

    @property
    def wavelengths(self) -> list[float]:
        """The wavelength 2 pi / theta_i of each pair, in tokens."""
        return [2 * math.pi * self.rope_theta ** (2 * i / self.exponent_dim) for i in range(self.pairs)]

    @property
    def critical_dimension(self) -> int:
        """The first dimension whose pair never completed a rotation in training, clipped to [0, d].

        d_tcd = 2 ceil((d/2) log_base(L / 2 pi)) (LongRoPE2, 2502.20082, eq. 3).
        """
        share = math.log(self.original_length / (2 * math.pi), self.rope_theta)
        return min(max(2 * math.ceil(self.exponent_dim / 2 * share), 0), self.rotary_dim)

    @property
    def no_longer_context(self) -> str | None:
        """Why no factors lengthen the context, as a sentence without its full stop; None if they may."""
        if self.reach is None or self.reach > self.original_length:
            return None
        return (
            f"every layer of {self.architecture} with RoPE sees at most {self.reach} tokens, and its original length "
            f"is {self.original_length}: no rescale factors lengthen what it sees; a copy with a larger window in its "
            "config.json can be searched"
        )

    def check_searchable(self) -> None:
        """Refuse a model for which nothing can be searched.

        Raises:
            UnsupportedModelError: says why.
        """
        reason = self.not_loadable or self.no_longer_context
        if reason is not None:
            raise UnsupportedModelError(reason)

    def configured_factors(self, target_length: int | None) -> Factors | None:
        """Return the scaling of the configuration as factors relative to the plain theta_i, or None if it has none.

        A model with RoPE type llama3, yarn or longrope computes with these factors already.

        Args:
            target_length: tokens of an input, on which dynamic and longrope depend; None is a model just loaded.

        Raises:
            UnsupportedModelError: transformers cannot compute the scaling from the configuration, or gives another
                number of frequencies than the model has pairs.
        """
        if self.live_factors is not None:
            return self.live_factors
        if self.base_rope_type in ("default", "proportional"):
            return None
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        initialise = ROPE_INIT_FUNCTIONS[self.base_rope_type]
        try:
            inverse, attention_factor = initialise(self.config, None, seq_len=target_length, layer_type=self.layer_type)
            if inverse.shape == (self.pairs,):
                return Factors.of((self.inverse_frequencies() / inverse).tolist(), 0, attention_factor)
        except Exception as error:  # whatever it raises where keys are missing, or have no value
            raise UnsupportedModelError(
                f"transformers cannot compute RoPE type {self.base_rope_type!r} from the configuration of "
                f"{self.architecture} ({one_line(error)}): complete its config.json"
            ) from error
        raise UnsupportedModelError(
            f"RoPE type {self.base_rope_type!r} gives {len(inverse)} frequencies for the configuration of "
            f"{self.architecture}, which says {self.pairs} rotary pairs"
        )


def longrope_attention_factor(scale: float, original_length: int) -> float:
    """LongRoPE's attention factor is sqrt(1 + ln s / ln L), as in its published models."""
    return math.sqrt(1 + math.log(scale) / math.log(original_length)) if scale > 1 else 1.0
