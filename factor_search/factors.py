"""Factors: one candidate for a model's RoPE, the central value of this package."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from factor_search.errors import FactorsError
from factor_search.files.canonical_json import sha256_of
from factor_search.files.html import html_numbers, html_values


@dataclass(frozen=True)
class Factors:
    """Rescale factors with the number of initial tokens and the attention factor; an immutable, hashable value.

    Position n of rotary pair i is rotated by ``n * theta_i / rescale_factors[i]``, or by the model's own RoPE where
    ``n < initial_tokens``; rescaled cos and sin are multiplied by ``attention_factor`` (LongRoPE, 2402.13753, eq. 3).
    """

    rescale_factors: tuple[float, ...]
    """lambda_i relative to the plain theta_i, one for each of the rotary_dim / 2 pairs."""
    initial_tokens: int = 0
    """n_hat: number of leading positions that keep the model's own RoPE."""
    attention_factor: float = 1.0
    """mscale: it multiplies cos and sin, and therefore attention logits by its square."""

    def __post_init__(self) -> None:
        if not self.rescale_factors:
            raise FactorsError("rescale_factors is empty: one number for each rotary pair is needed")
        for i, value in enumerate(self.rescale_factors):
            if not math.isfinite(value) or value <= 0:
                raise FactorsError(f"rescale_factors[{i}] is {value}: every factor must be finite and above 0")
        if self.initial_tokens < 0:
            raise FactorsError(f"initial_tokens is {self.initial_tokens}: it must be 0 or more")
        if not math.isfinite(self.attention_factor) or self.attention_factor <= 0:
            raise FactorsError(f"attention_factor is {self.attention_factor}: it must be finite and above 0")

    @classmethod
    def of(cls, rescale_factors: Sequence[float], initial_tokens: int = 0, attention_factor: float = 1.0) -> "Factors":
        """Build factors from any sequence of numbers (list, array, tensor)."""
        return cls(tuple(float(value) for value in rescale_factors), int(initial_tokens), float(attention_factor))

    def as_json(self) -> dict[str, object]:
        """Return the three keys that a factors file and a stored evaluation share."""
        return {
            "rescale_factors": list(self.rescale_factors),
            "initial_tokens": self.initial_tokens,
            "attention_factor": self.attention_factor,
        }

    def _repr_html_(self) -> str:
        values = {"initial tokens": f"{self.initial_tokens}", "attention factor": f"{self.attention_factor:.6g}"}
        count = len(self.rescale_factors)
        return html_values("Rescale factors", values, below=html_numbers(f"{count} factors", self.rescale_factors))

    @property
    def sha256(self) -> str:
        """The content hash of the three values."""
        return sha256_of(self.as_json())
