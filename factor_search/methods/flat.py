"""Closed forms without a ramp and without a base: none, position interpolation, and a clip of the slowest pairs."""

import math

from factor_search.factors import Factors
from factor_search.methods.rebased import scale_of
from factor_search.model.geometry import Geometry

CLIPPED_SHARE = 20 / 64
"""Of the pairs."""
CLIP = 1e4
"""Largest lambda, in place of infinity: a pair that hardly rotates at all."""


def none(geometry: Geometry, target_length: int) -> Factors:
    """Leave RoPE as it is: all factors are 1."""
    return Factors.of([1.0] * geometry.pairs)


def position_interpolation(geometry: Geometry, target_length: int) -> Factors:
    """Position interpolation divides every position by s (2306.15595, eq. 4)."""
    return Factors.of([scale_of(geometry, target_length)] * geometry.pairs)


def soft_clip(geometry: Geometry, target_length: int) -> Factors:
    """CoPE's soft clip multiplies the slowest k frequencies by (1 + cos(pi j / (k - 1))) / 2, j = 0 ... k - 1.

    k is 20 of 64 pairs (2602.05258). It does not depend on the target length. The last frequency would be 0; its lambda
    is clipped to 10,000.
    """
    clipped = max(round(CLIPPED_SHARE * geometry.pairs), 2)
    kept = [(1 + math.cos(math.pi * j / (clipped - 1))) / 2 for j in range(clipped)]
    slow = [min(1 / share, CLIP) if share > 0 else CLIP for share in kept]
    return Factors.of([*([1.0] * (geometry.pairs - clipped)), *slow][-geometry.pairs :])
