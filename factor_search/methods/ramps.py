"""Closed forms with a ramp: fast pairs keep their frequency, slow ones are divided by s, between them lies a ramp."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.methods.rebased import RAISED_BASE, new_base, scale_of
from factor_search.model.geometry import Geometry, longrope_attention_factor
from factor_search.model.yarn import interpolated, ramp_ends, yarn_attention_factor

STEP = "rotation-step"
"""The name of :func:`rotation_step`."""
STEP_WIDTH = 0.5
"""Of its step, in octaves of rotations."""
NARROW_RAMP = (7.0, 0.8)
"""Rotations at the ends of the ramp of :func:`yarn_narrow`."""
NARROW_EXPONENT = 0.92
"""Of s, in its factor."""


def yarn(geometry: Geometry, target_length: int, beta_fast: float = 32.0, beta_slow: float = 1.0) -> Factors:
    """YaRN interpolates frequencies (not lambda) over a ramp of dimensions; the attention factor is 0.1 ln s + 1.

    See 2309.00071, eq. 17-23. As in the authors' code and in transformers, the ramp ends at whole dimensions.
    """
    scale, ends = scale_of(geometry, target_length), ramp_ends(geometry, beta_fast, beta_slow)
    return Factors.of(interpolated(geometry, scale, *ends), 0, _own_yarn_attention_factor(geometry, scale))


def yarn_untruncated(geometry: Geometry, target_length: int) -> Factors:
    """YaRN with a ramp whose ends are not rounded to whole dimensions, as gpt-oss has it (``truncate`` false)."""
    scale, ends = scale_of(geometry, target_length), ramp_ends(geometry, truncate=False)
    return Factors.of(interpolated(geometry, scale, *ends), 0, _own_yarn_attention_factor(geometry, scale))


def yarn_cooler(geometry: Geometry, target_length: int) -> Factors:
    """YaRN with the attention factor 0.07 ln s + 1, between none and YaRN's own."""
    scale = scale_of(geometry, target_length)
    return Factors.of(yarn(geometry, target_length).rescale_factors, 0, yarn_attention_factor(scale, 0.07))


def yarn_rebased(geometry: Geometry, target_length: int, base: float = RAISED_BASE) -> Factors:
    """YaRN on a raised base, 500,000: its ramp lies where the raised frequencies make so many rotations.

    As models are extended whose base is raised before (Qwen2.5 and others). A model with a larger base keeps it.
    """
    scale, raised = scale_of(geometry, target_length), max(base, geometry.rope_theta)
    ramp = interpolated(geometry, scale, *ramp_ends(geometry, base=raised))
    of_base = new_base(geometry, raised).rescale_factors
    factors = [one * other for one, other in zip(of_base, ramp, strict=True)]
    return Factors.of(factors, 0, yarn_attention_factor(scale))


def yarn_narrow(geometry: Geometry, target_length: int) -> Factors:
    """YaRN with a ramp from 7 to 0.8 rotations, not 32 to 1, and factor s^0.92; LongRoPE's attention factor.

    The three constants were fitted (``bench.fit_closed_form`` does it with ``--form yarn --models shipped-4x shipped-8x
    fresh-1-4x fresh-2-16x``) to three models of two to three million parameters, trained for 64 to 256 tokens and
    extended by 4 to 16 times without fine-tuning. It is a form for such models; for pretrained ones see
    :func:`factor_search.methods.rebased.raised_base`.
    """
    scale = scale_of(geometry, target_length)
    factor = max(scale, 1.0) ** NARROW_EXPONENT
    lambdas = interpolated(geometry, factor, *ramp_ends(geometry, *NARROW_RAMP))
    return Factors.of(lambdas, 0, longrope_attention_factor(scale, geometry.original_length))


def mrrope_uni(geometry: Geometry, target_length: int) -> Factors:
    """MrRoPE-Uni is lambda_i = s^((i - lo) / (hi - lo)) between the ends of YaRN's ramp (2601.22181).

    The radix of each dimension on the ramp is converted by the same factor. 1 before lo, s from hi; YaRN's attention
    factor.
    """
    return _converted(geometry, target_length, lambda step, steps: step / steps)


def mrrope_pro(geometry: Geometry, target_length: int) -> Factors:
    """MrRoPE-Pro is lambda_i = s^((i - lo)(i - lo + 1) / ((hi - lo)(hi - lo + 1))) on YaRN's ramp (2601.22181).

    The factors of the radix conversion grow with the dimension. 1 before lo, s from hi; the attention factor is YaRN's.
    """
    return _converted(geometry, target_length, lambda step, steps: step * (step + 1) / (steps * (steps + 1)))


def _converted(geometry: Geometry, target_length: int, height: Callable[[float, float], float]) -> Factors:
    """s to the power of a height, which is 0 at the begin of YaRN's ramp and 1 at its end."""
    scale, (low, high) = scale_of(geometry, target_length), ramp_ends(geometry)
    steps = [min(max(i - low, 0), high - low) for i in range(geometry.pairs)]
    factors = [
        scale ** height(step, high - low) if high > low else scale ** (i >= high) for i, step in enumerate(steps)
    ]
    return Factors.of(factors, 0, yarn_attention_factor(scale))


def llama3(geometry: Geometry, target_length: int, low: float = 1.0, high: float = 4.0) -> Factors:
    """Llama 3.1's rule keeps high frequencies, divides low ones by s, and interpolates between them."""
    scale, length = scale_of(geometry, target_length), geometry.original_length
    factors = []
    for wavelength in geometry.wavelengths:
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(scale)
        else:
            blend = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - blend) / scale + blend))
    return Factors.of(factors)


def rotation_step(
    geometry: Geometry,
    target_length: int,
    step: float = -0.75,
    jump: float = 1.0,
    level: float = 0.95,
    start: float = 2.1,
) -> Factors:
    """A rise by e where pairs make half a rotation in training, after a ramp from four; fitted to small models.

    Over log2 of the rotations within the original length, log lambda is 0 down to ``start``, rises linearly to
    log(level s) - jump, and by ``jump`` in half an octave around ``step``; slower pairs have lambda = level s. The
    attention factor is LongRoPE's.

    The constants were fitted (``python -m bench.fit_closed_form``, rounded) to four models of one to three million
    parameters, trained for 64 to 256 tokens and extended by 4 to 64 times without fine-tuning. It is a form for such
    models only: on SmolLM2 (135 million parameters, 8,192 tokens, four times) every usual form that scales is better
    but PI, and what is good rises from the fastest pair on, as published factors of large models do.

    Args:
        geometry: of the model.
        target_length: in tokens.
        step: log2 of the rotations in the middle of the step.
        jump: difference of log lambda in the step.
        level: lambda of the slowest pairs, as a share of s.
        start: log2 of the rotations at which lambda begins to rise.
    """
    scale = scale_of(geometry, target_length)
    highest = max(math.log(level * scale), 0.0)
    rotations = [geometry.original_length / wavelength for wavelength in geometry.wavelengths]
    logs = stepped(rotations, step, max(highest - jump, 0.0), highest, start)
    return Factors.of(np.exp(logs).tolist(), 0, longrope_attention_factor(scale, geometry.original_length))


def stepped(rotations: Sequence[float], step: float, before: float, level: float, start: float) -> NDArray[np.float64]:
    """A curve over the rotations of pairs within the original length: 0, a ramp from ``start`` on, and a step.

    Args:
        rotations: of each pair.
        step: log2 of the rotations in the middle of the step, which is half an octave wide.
        before: height at which the step begins.
        level: height at which it ends, and which all slower pairs have.
        start: log2 of the rotations at which the height begins to rise from 0.

    Returns:
        Heights of shape (pairs,).
    """
    half = STEP_WIDTH / 2
    nodes = [-max(start, step + half + 0.1), -step - half, -step + half]
    return np.interp(-np.log2(rotations), nodes, [0.0, before, max(level, before)])


def _own_yarn_attention_factor(geometry: Geometry, scale: float) -> float:
    """Return YaRN's attention factor, of which some models put a part into the scale of their softmax (DeepSeek-V3).

    Their configuration says so by mscale m and mscale_all_dim n; cos and sin get (0.1 m ln s + 1) / (0.1 n ln s + 1),
    as in transformers.
    """
    parameters = getattr(geometry.config, "rope_parameters", None) or {}
    own = parameters.get(geometry.layer_type) or {} if geometry.layer_type else parameters
    parts: list[float] = [own.get(name) or 0.0 for name in ("mscale", "mscale_all_dim")]
    if geometry.base_rope_type != "yarn" or scale <= 1 or not all(parts):
        return yarn_attention_factor(scale)
    of_rotation, of_softmax = (0.1 * part * math.log(scale) + 1 for part in parts)
    return of_rotation / of_softmax
