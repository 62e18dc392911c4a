"""Closed-form rescale factors, which seed every search and are the baselines of every report.

Each method gives lambda_i relative to the plain theta_i = base^(-2i/d), for a scale s = target / original length.
"""

from collections.abc import Callable

from factor_search.errors import FactorsError, SpecError, one_line
from factor_search.factors import Factors
from factor_search.methods.flat import none, position_interpolation, soft_clip
from factor_search.methods.numbers import exact_numbers as exact_numbers
from factor_search.methods.ramps import (
    STEP,
    llama3,
    mrrope_pro,
    mrrope_uni,
    rotation_step,
    yarn,
    yarn_cooler,
    yarn_narrow,
    yarn_rebased,
    yarn_untruncated,
)
from factor_search.methods.rebased import (
    dynamic_ntk,
    entropy_abf,
    ntk_aware,
    ntk_constant,
    ntk_critical,
    ntk_fixed,
    ntk_mixed,
    raised_base,
)
from factor_search.model.geometry import Geometry
from factor_search.model.geometry import longrope_attention_factor as longrope_attention_factor
from factor_search.model.yarn import yarn_attention_factor as yarn_attention_factor
from factor_search.model.yarn import yarn_of_numbers as yarn_of_numbers

AS_CONFIGURED = "as-configured"
OWN = (STEP, "raised-base", "yarn-narrow")
"""The closed forms whose constants were fitted here; all others are published."""
USUAL = ("none", "pi", "ntk", "dynamic-ntk", "ntk-critical", "yarn", "llama3", "entropy-abf", AS_CONFIGURED)
"""The methods that every report compares with, unless a specification names others."""
OPEN_LENGTH = ("linear", "yarn")
"""RoPE types whose configurations may have max_position_embeddings before or after the scaling."""


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
    "mrrope-uni": mrrope_uni,
    "mrrope-pro": mrrope_pro,
    "ntk-constant": ntk_constant,
    "ntk-fixed": ntk_fixed,
    "ntk-mixed": ntk_mixed,
    "yarn-untruncated": yarn_untruncated,
    "yarn-cooler": yarn_cooler,
    "yarn-rebased": yarn_rebased,
    "soft-clip": soft_clip,
    STEP: rotation_step,
    "raised-base": raised_base,
    "yarn-narrow": yarn_narrow,
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


def untouched(geometry: Geometry, length: int | None = None) -> Factors:
    """Return the factors with which the model computes as it is, for texts of so many tokens.

    Args:
        geometry: of the model.
        length: in tokens; None is the original length.
    """
    length = geometry.original_length if length is None else length
    return geometry.configured_factors(length) or closed_form("none", geometry, length)


def _at_least(factors: Factors, least: Factors) -> Factors:
    """The same, but no rescale factor below that of others."""
    lambdas = [max(pair) for pair in zip(factors.rescale_factors, least.rescale_factors, strict=True)]
    return Factors.of(lambdas, factors.initial_tokens, factors.attention_factor)
