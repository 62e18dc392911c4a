"""The attention factor of engines that compute it from two lengths.

MLX, ExLlamaV3 and TensorRT-LLM read no attention factor. They compute it from two lengths in the configuration, as
LongRoPE does (2402.13753):

    a = sqrt(1 + ln(m / o) / ln(o)) = sqrt(ln(m) / ln(o))        m = max_position_embeddings
                                                                o = original_max_position_embeddings

With the same factors for all inputs nothing else depends on o, so a pair of lengths can express any a >= 1. Programs
take their context window from m. Hence m stays the target length where possible, and o = m^(1 / a^2) is solved for;
it is the original length if a is the formula's. With o = L instead, m = L^(a^2) would be a false window: too short
for a = 1, and too long to allocate for a large a.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

PRECISION = 1e-6
"""Relative error of an attention factor below which lengths need not be better."""
REPORTED = 1e-4
"""Relative error of an attention factor above which an export mentions it."""
_SEARCHED = 65_536
_LARGEST = 53 * math.log(2)


class Lengths(NamedTuple):
    """Two lengths of a configuration that together express an attention factor."""

    maximum: int
    """``max_position_embeddings``, in tokens."""
    original: int
    """``original_max_position_embeddings``, in tokens."""

    @property
    def attention_factor(self) -> float:
        """What an engine computes from them: sqrt(1 + ln(m / o) / ln(o)), and 1 unless m > o."""
        if self.maximum <= self.original or self.original < 2:
            return 1.0
        return math.sqrt(1 + math.log(self.maximum / self.original) / math.log(self.original))

    def notes(self, attention_factor: float, target_length: int) -> list[str]:
        """What a user should know: where the configuration says something else than the factors do."""
        notes = []
        if abs(self.attention_factor / attention_factor - 1) > REPORTED:
            notes.append(f"The attention factor becomes {self.attention_factor:.6g} instead of {attention_factor:.6g}.")
        if self.maximum != target_length:
            notes.append(
                f"max_position_embeddings is {self.maximum} instead of {target_length}, as the attention factor is "
                "computed from it: limit inputs to the target length yourself."
            )
        return notes


def lengths_for(attention_factor: float, target_length: int, original_length: int) -> Lengths:
    """Find lengths that express an attention factor.

    Args:
        attention_factor: a, at least 1.
        target_length: the least ``max_position_embeddings``, in tokens.
        original_length: the model's own original length, which is tried first.

    Returns:
        A pair whose attention factor differs by less than :data:`PRECISION`, with the least window; or else the
        nearest pair with a window below twice the target length. Where all those differ by more than
        :data:`REPORTED`, since o is small for a large a, o = L with the window m = L^(a^2).
    """

    def error(lengths: Lengths) -> float:
        return abs(lengths.attention_factor / attention_factor - 1)

    nearest = Lengths(target_length, original_length)
    for lengths in _windows(attention_factor, target_length):
        if error(nearest) < PRECISION:
            return nearest
        nearest = min(nearest, lengths, key=error)
    if error(nearest) > REPORTED:
        window = round(math.exp(min(attention_factor * attention_factor * math.log(original_length), _LARGEST)))
        return min(nearest, Lengths(max(window, target_length), original_length), key=error)
    return nearest


def _windows(a: float, target_length: int) -> Iterator[Lengths]:
    yield Lengths(target_length, target_length)  # a = 1
    for maximum in range(target_length, target_length + min(target_length, _SEARCHED)):
        yield Lengths(maximum, max(round(maximum ** (1 / (a * a))), 2))
