"""Closed-form rescale factors, which seed every search and are the baselines of every report.

Each method gives lambda_i relative to the plain theta_i = base^(-2i/d), for a scale s = target / original length.
"""

import math
from collections.abc import Callable

from factor_search.errors import FactorsError, SpecError, one_line
from factor_search.factors import Factors
from factor_search.model.geometry import Geometry
from factor_search.model.geometry import longrope_attention_factor as longrope_attention_factor  # beside yarn's

AS_CONFIGURED = "as-configured"
OPEN_LENGTH = ("linear", "yarn")
"""RoPE types whose configurations may have max_position_embeddings before or after the scaling."""


def none(geometry: Geometry, target_length: int) -> Factors:
    """Leave RoPE as it is: all factors are 1."""
    return Factors.of([1.0] * geometry.pairs)


def position_interpolation(geometry: Geometry, target_length: int) -> Factors:
    """Position interpolation divides every position by s (2306.15595, eq. 4)."""
    return Factors.of([_scale(geometry, target_length)] * geometry.pairs)


def ntk_aware(geometry: Geometry, target_length: int) -> Factors:
    """NTK-aware scaling uses base' = base * s^(d/(d-2)), so that lambda of the last pair is s (2309.00071, eq. 16)."""
    d = geometry.exponent_dim
    base = geometry.rope_theta * _scale(geometry, target_length) ** (d / max(d - 2, 1))
    return _new_base(geometry, base)


def dynamic_ntk(geometry: Geometry, target_length: int) -> Factors:
    """Dynamic NTK at length n = sL, as in inference engines: base' = base * (s n / L - (s - 1))^(d/(d-2))."""
    d = geometry.exponent_dim
    scale = _scale(geometry, target_length)
    base = geometry.rope_theta * (scale * target_length / geometry.original_length - (scale - 1)) ** (d / max(d - 2, 1))
    return _new_base(geometry, base)


def ntk_critical(geometry: Geometry, target_length: int) -> Factors:
    """NTK scaling to the critical dimension uses base' = base^(ln(L'/2pi) / ln(L/2pi)).

    The pair that completes exactly one rotation within the original length L completes it within the target length L'
    (LongRoPE2, 2502.20082, sec. 3).
    """
    two_pi = 2 * math.pi
    exponent = math.log(target_length / two_pi) / math.log(geometry.original_length / two_pi)
    return _new_base(geometry, geometry.rope_theta**exponent)


def yarn(geometry: Geometry, target_length: int, beta_fast: float = 32.0, beta_slow: float = 1.0) -> Factors:
    """YaRN interpolates frequencies (not lambda) over a ramp of dimensions; the attention factor is 0.1 ln s + 1.

    See 2309.00071, eq. 17-23. As in the authors' code and in transformers, the ramp ends at whole dimensions.
    """
    scale = _scale(geometry, target_length)
    d, base, length = geometry.exponent_dim, geometry.rope_theta, geometry.original_length

    def dimension_of(rotations: float) -> float:
        """Return the pair index that makes so many rotations within the original length."""
        return d * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_of(beta_fast)), 0)
    high = min(math.ceil(dimension_of(beta_slow)), d - 1)
    width = (high - low) or 0.001
    factors = []
    for i in range(geometry.pairs):
        ramp = min(max((i - low) / width, 0.0), 1.0)
        keep = 1 - ramp  # share of the original frequency that is kept
        factors.append(1 / ((1 - keep) / scale + keep))
    return Factors.of(factors, attention_factor=_own_yarn_attention_factor(geometry, scale))


def llama3(geometry: Geometry, target_length: int, low: float = 1.0, high: float = 4.0) -> Factors:
    """Llama 3.1's rule keeps high frequencies, divides low ones by s, and interpolates between them."""
    scale, length = _scale(geometry, target_length), geometry.original_length
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


def entropy_abf(geometry: Geometry, target_length: int, base: float = 500_000.0) -> Factors:
    """Entropy-ABF adjusts the base to 500,000 (2401.07004, sec. 3).

    A model with a larger base keeps it, so no factor is below 1. The second half of the method, a factor on the queries
    that grows with the position, is not a RoPE factor and is left out.
    """
    return _new_base(geometry, max(base, geometry.rope_theta))


Method = Callable[[Geometry, int], Factors]

METHODS: dict[str, Method] = {
    "none": none,
    "pi": position_interpolation,
    "ntk": ntk_aware,
    "dynamic-ntk": dynamic_ntk,
    "ntk-critical": ntk_critical,
    "yarn": yarn,
    "llama3": llama3,
    "entropy-abf": entropy_abf,
}


def closed_form(name: str, geometry: Geometry, target_length: int) -> Factors:
    """Return the factors of one method by its name.

    Raises:
        SpecError: there is no such method, or the name is ``as-configured`` and the model's configuration has no
            scaling.
    """
    available = closed_forms(geometry, target_length)
    if name not in available:
        raise SpecError(f"unknown method {name!r}: choose one of {', '.join(available)}")
    return available[name]


def closed_forms(geometry: Geometry, target_length: int) -> dict[str, Factors]:
    """Return the factors of every method by name, and ``as-configured`` where the model already has a scaling.

    Where that is linear or YaRN, its configuration often leaves open for which original length. No closed form but
    ``none`` is below it then: a model that was trained with a scaling would get a weaker one for more tokens.

    Raises:
        SpecError: a formula gives no finite factors for these lengths.
    """
    try:
        factors = {name: method(geometry, target_length) for name, method in METHODS.items()}
    except (ArithmeticError, ValueError, FactorsError) as error:
        raise SpecError(
            f"closed forms have no finite factors from {geometry.original_length} to {target_length} tokens with "
            f"rope_theta {geometry.rope_theta:g} ({one_line(error)}): give another target or original length"
        ) from None
    configured = geometry.configured_factors(target_length)
    if configured is None:
        return factors
    if geometry.base_rope_type in OPEN_LENGTH:
        factors = {name: form if name == "none" else _at_least(form, configured) for name, form in factors.items()}
    return factors | {AS_CONFIGURED: configured}


def _at_least(factors: Factors, least: Factors) -> Factors:
    """The same, but no rescale factor below that of others."""
    lambdas = [max(pair) for pair in zip(factors.rescale_factors, least.rescale_factors, strict=True)]
    return Factors.of(lambdas, factors.initial_tokens, factors.attention_factor)


def yarn_attention_factor(scale: float) -> float:
    """YaRN's attention factor is 0.1 ln s + 1 (2309.00071, eq. 22)."""
    return 0.1 * math.log(scale) + 1.0 if scale > 1 else 1.0


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


def _scale(geometry: Geometry, target_length: int) -> float:
    return target_length / geometry.original_length


def _new_base(geometry: Geometry, base: float) -> Factors:
    """Express a new base as factors: lambda_i = (base' / base)^(2i/d)."""
    ratio = base / geometry.rope_theta
    return Factors.of([ratio ** (2 * i / geometry.exponent_dim) for i in range(geometry.pairs)])
