"""Whether factors are YaRN with some numbers, or a plain base: then engines that read no lists can load them."""

from typing import Any

from factor_search.factors import Factors
from factor_search.methods.ramps import NARROW_EXPONENT, NARROW_RAMP
from factor_search.methods.rebased import RAISED_BASE, scale_of
from factor_search.model.geometry import Geometry
from factor_search.model.yarn import yarn_of_numbers

RAMP = (32.0, 1.0)
"""Rotations at the ends of YaRN's ramp, as engines take them."""
TOLERANCE = 1e-9
"""Relative, of each factor."""


def exact_numbers(factors: Factors, geometry: Geometry, target_length: int) -> dict[str, Any] | None:
    """Return the numbers that give factors exactly: YaRN's on this or a raised base, or a base with YaRN's factor at 1.

    Args:
        factors: of a closed form.
        geometry: of the model.
        target_length: in tokens.

    Returns:
        The ``form`` of a factors file. None if no such numbers give the factors, if they have initial tokens, and if
        the model has a scaling of its own.
    """
    if factors.initial_tokens or geometry.base_rope_type != "default":
        return None
    theta, d, last = geometry.rope_theta, geometry.exponent_dim, geometry.pairs - 1
    raised = theta * factors.rescale_factors[-1] ** (d / (2 * last)) if last else theta
    scale = scale_of(geometry, target_length)
    for factor, base, ramp in (
        (1.0, raised, RAMP),
        (scale, theta, RAMP),
        (scale, RAISED_BASE, RAMP),
        (scale**NARROW_EXPONENT, theta, NARROW_RAMP),
    ):
        numbers = {"factor": factor, "beta_fast": ramp[0], "beta_slow": ramp[1], "rope_theta": base}
        numbers["attention_factor"] = factors.attention_factor
        given = yarn_of_numbers(geometry, **numbers).rescale_factors
        if all(abs(one / other - 1) <= TOLERANCE for one, other in zip(given, factors.rescale_factors, strict=True)):
            plain = factor == 1.0 and factors.attention_factor == 1.0
            return {"kind": "base" if plain else "yarn", **numbers}
    return None
