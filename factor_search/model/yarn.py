"""YaRN's frequencies and its attention factor, by the numbers that configurations have."""

import math

from factor_search.factors import Factors
from factor_search.model.geometry import Geometry


def yarn_of_numbers(
    geometry: Geometry, factor: float, beta_fast: float, beta_slow: float, attention_factor: float, rope_theta: float
) -> Factors:
    """YaRN with any numbers, as engines compute it that read them from a configuration (2309.00071, sec. 3.4).

    Args:
        geometry: of the model, whose own base the factors are relative to.
        factor: divides slow frequencies; 1 leaves the base alone.
        beta_fast: rotations within the original length at the begin of the ramp.
        beta_slow: rotations at its end.
        attention_factor: of cos and sin.
        rope_theta: base of RoPE, with which the ramp is computed too.
    """
    ramp = interpolated(geometry, factor, *ramp_ends(geometry, beta_fast, beta_slow, base=rope_theta))
    ratio, d = rope_theta / geometry.rope_theta, geometry.exponent_dim
    of_base = [ratio ** (2 * i / d) for i in range(geometry.pairs)]
    return Factors.of([one * other for one, other in zip(of_base, ramp, strict=True)], 0, attention_factor)


def yarn_attention_factor(scale: float, slope: float = 0.1) -> float:
    """YaRN's attention factor is 0.1 ln s + 1 (2309.00071, eq. 22)."""
    return slope * math.log(scale) + 1.0 if scale > 1 else 1.0


def ramp_ends(
    geometry: Geometry,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    *,
    truncate: bool = True,
    base: float | None = None,
) -> tuple[float, float]:
    """The indices of pairs between which YaRN's ramp lies: those with so many rotations within the original length.

    Args:
        geometry: of the model.
        beta_fast: rotations at the begin.
        beta_slow: rotations at the end.
        truncate: whether the ends are rounded outwards to whole dimensions.
        base: of RoPE; None is the model's.
    """
    d, length = geometry.exponent_dim, geometry.original_length
    low, high = (
        d * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base or geometry.rope_theta))
        for rotations in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, d - 1)


def interpolated(geometry: Geometry, scale: float, low: float, high: float) -> list[float]:
    """YaRN's ramp: the share of the frequency that is kept falls linearly from low to high (2309.00071, eq. 23)."""
    width = (high - low) or 0.001
    keep = [1 - min(max((i - low) / width, 0.0), 1.0) for i in range(geometry.pairs)]
    return [1 / ((1 - share) / scale + share) for share in keep]
