import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factor_search import methods
from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from tests.synthetic import is_monotone

GEOMETRIES = {
    "base": st.sampled_from([10_000.0, 500_000.0, 1_000_000.0]),
    "head_dim": st.sampled_from([32, 64, 80, 128]),
    "original": st.sampled_from([256, 2048, 8192]),
    "scale": st.sampled_from([2, 4, 8, 32]),
}


def geometry_of(base: float, head_dim: int, original: int, **rope_scaling: object) -> Geometry:
    config = AutoConfig.for_model(
        "llama",
        head_dim=head_dim,
        max_position_embeddings=original,
        rope_theta=base,
        rope_scaling=rope_scaling or None,
    )
    return read_geometry(config)


def transformers_says(
    base: float, head_dim: int, original: int, length: int, **rope: object
) -> tuple[torch.Tensor, float]:
    """The independent source: transformers' own initialisation function for a RoPE type."""
    config = geometry_of(base, head_dim, original, **rope).config
    return ROPE_INIT_FUNCTIONS[str(rope["rope_type"])](config, None, seq_len=length)


def assert_same(geometry: Geometry, factors: Factors, expected: tuple[torch.Tensor, float]) -> None:
    inverse = geometry.inverse_frequencies().double() / torch.tensor(factors.rescale_factors, dtype=torch.float64)
    torch.testing.assert_close(inverse, expected[0].double(), rtol=2e-6, atol=0)
    assert factors.attention_factor == pytest.approx(expected[1], rel=1e-6)


@given(**GEOMETRIES)
def test_position_interpolation(base: float, head_dim: int, original: int, scale: int) -> None:
    geometry, target = geometry_of(base, head_dim, original), original * scale
    expected = transformers_says(base, head_dim, original, target, rope_type="linear", factor=float(scale))
    assert_same(geometry, methods.position_interpolation(geometry, target), expected)


@given(**GEOMETRIES)
def test_ntk_is_dynamic_ntk_with_factor_one(base: float, head_dim: int, original: int, scale: int) -> None:
    geometry, target = geometry_of(base, head_dim, original), original * scale
    expected = transformers_says(base, head_dim, original, target, rope_type="dynamic", factor=1.0)
    assert_same(geometry, methods.ntk_aware(geometry, target), expected)
    assert methods.ntk_aware(geometry, target).rescale_factors[-1] == pytest.approx(scale)


@given(**GEOMETRIES)
def test_dynamic_ntk(base: float, head_dim: int, original: int, scale: int) -> None:
    geometry, target = geometry_of(base, head_dim, original), original * scale
    expected = transformers_says(base, head_dim, original, target, rope_type="dynamic", factor=float(scale))
    assert_same(geometry, methods.dynamic_ntk(geometry, target), expected)


@given(**GEOMETRIES)
def test_yarn(base: float, head_dim: int, original: int, scale: int) -> None:
    geometry, target = geometry_of(base, head_dim, original), original * scale
    settings = {"factor": float(scale), "original_max_position_embeddings": original}
    expected = transformers_says(base, head_dim, original, target, rope_type="yarn", **settings)
    assert_same(geometry, methods.yarn(geometry, target), expected)


def test_yarn_with_the_betas_of_mistral() -> None:
    geometry = geometry_of(10_000.0, 128, 8192)
    betas = {"beta_fast": 128.0, "beta_slow": 2.0}
    expected = transformers_says(
        10_000.0, 128, 8192, 65_536, rope_type="yarn", factor=8.0, original_max_position_embeddings=8192, **betas
    )
    assert_same(geometry, methods.yarn(geometry, 65_536, **betas), expected)


def test_yarn_interpolates_frequencies_not_lambda() -> None:
    """At m = 0.5 and s = 8 lambda is 1 / (0.5 / 8 + 0.5) = 1.78, not 4.5."""
    geometry = geometry_of(10_000.0, 64, 256)
    factors = methods.yarn(geometry, 2048).rescale_factors
    low, high = (
        round_(64 * math.log(256 / (rotations * 2 * math.pi)) / (2 * math.log(10_000.0)))
        for rotations, round_ in ((32, math.floor), (1, math.ceil))
    )
    middle = (max(low, 0) + high) / 2
    assert middle == int(middle) + 0.5
    around = factors[int(middle)], factors[int(middle) + 1]
    assert around[0] < 1 / (0.5 / 8 + 0.5) < around[1] < 4.5


@given(**GEOMETRIES)
def test_llama3(base: float, head_dim: int, original: int, scale: int) -> None:
    geometry, target = geometry_of(base, head_dim, original), original * scale
    settings = {
        "factor": float(scale),
        "original_max_position_embeddings": original,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    expected = transformers_says(base, head_dim, original, target, rope_type="llama3", **settings)
    assert_same(geometry, methods.llama3(geometry, target), expected)


@given(**GEOMETRIES)
def test_longrope_attention_factor(base: float, head_dim: int, original: int, scale: int) -> None:
    settings = {
        "factor": float(scale),
        "original_max_position_embeddings": original,
        "short_factor": [1.0] * (head_dim // 2),
        "long_factor": [1.0] * (head_dim // 2),
    }
    expected = transformers_says(base, head_dim, original, original * scale, rope_type="longrope", **settings)
    assert methods.longrope_attention_factor(scale, original) == pytest.approx(expected[1], rel=1e-9)
    assert methods.longrope_attention_factor(1.0, original) == 1.0


@given(**GEOMETRIES)
def test_ntk_critical_completes_at_the_target_what_completed_at_the_original(
    base: float, head_dim: int, original: int, scale: int
) -> None:
    """The (fractional) dimension with wavelength L has wavelength L' under the new base."""
    geometry, target = geometry_of(base, head_dim, original), original * scale
    last = methods.ntk_critical(geometry, target).rescale_factors[-1]
    new_base = base * last ** (head_dim / (head_dim - 2))
    rotations = math.log(original / (2 * math.pi), base)  # of the dimension that just completes one period
    assert 2 * math.pi * new_base**rotations == pytest.approx(target, rel=1e-9)


def test_entropy_abf_is_a_model_with_another_base() -> None:
    geometry, other = geometry_of(10_000.0, 64, 256), geometry_of(500_000.0, 64, 256)
    factors = methods.entropy_abf(geometry, 2048)
    torch.testing.assert_close(
        geometry.inverse_frequencies(factors.rescale_factors), other.inverse_frequencies(), rtol=2e-6, atol=0
    )
    assert methods.entropy_abf(other, 2048, base=10_000.0).rescale_factors == (1.0,) * 32


@given(**GEOMETRIES)
def test_every_method_is_monotone_and_at_least_one(base: float, head_dim: int, original: int, scale: int) -> None:
    geometry = geometry_of(base, head_dim, original)
    for name, factors in methods.closed_forms(geometry, original * scale).items():
        assert is_monotone(factors), name
        assert min(factors.rescale_factors) >= 1.0, name


def test_a_scaled_model_has_its_own_configuration_among_the_methods() -> None:
    rope = {"rope_type": "linear", "factor": 4.0}
    geometry = geometry_of(10_000.0, 64, 256, **rope)
    assert methods.closed_form("as-configured", geometry, 1024).rescale_factors == pytest.approx([4.0] * 32)
    assert "as-configured" not in methods.closed_forms(geometry_of(10_000.0, 64, 256), 1024)


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match="yarn"):
        methods.closed_form("yarm", geometry_of(10_000.0, 64, 256), 1024)


def _stepped(rotations: mpmath.mpf, s: float) -> mpmath.mpf:
    """Lambda where a pair makes so many rotations in training, from many to few."""
    octaves = mpmath.log(rotations) / mpmath.log(2)
    highest = max(mpmath.log(mpmath.mpf("0.95") * s), 0)
    before = max(highest - 1, 0)
    if octaves >= mpmath.mpf("2.1"):
        return mpmath.mpf(1)
    if octaves >= mpmath.mpf("-0.5"):
        return mpmath.exp(before * (mpmath.mpf("2.1") - octaves) / mpmath.mpf("2.6"))
    if octaves >= -1:
        return mpmath.exp(before + (highest - before) * (mpmath.mpf("-0.5") - octaves) * 2)
    return mpmath.exp(highest)


def independent(name: str, d: int, base: float, length: int, s: float) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    """Rescale factors and attention factor, in 50 digits and from the papers' own quantities."""
    pairs, ln = d // 2, mpmath.log
    theta = [mpmath.mpf(base) ** (mpmath.mpf(-2 * i) / d) for i in range(pairs)]
    rotations = [length * one / (2 * mpmath.pi) for one in theta]

    def index(of: int, b: float = base) -> mpmath.mpf:
        return d * ln(length / (of * 2 * mpmath.pi)) / (2 * ln(b))

    lo, hi = max(mpmath.floor(index(32)), 0), min(mpmath.ceil(index(1)), d - 1)
    warm = 1 + ln(s) / 10
    match name:
        case "mrrope-uni" | "mrrope-pro":  # a product of one radix factor a dimension (2601.22181)
            steps = range(1, int(hi - lo) + 1)
            weights = [mpmath.mpf(1 if name == "mrrope-uni" else step) for step in steps]
            radix = [mpmath.mpf(s) ** (weight / sum(weights)) for weight in weights]
            return [mpmath.fprod(radix[: max(i - int(lo), 0)]) for i in range(pairs)], warm
        case "ntk-constant":
            critical = sum(one > 1 for one in rotations)
            height = mpmath.mpf("1.36") * s
            return [
                mpmath.exp(ln(height) * min(mpmath.mpf(i) / max(critical, 1), 1)) for i in range(pairs)
            ], mpmath.mpf(1)
        case "ntk-fixed":
            return [mpmath.root(s, pairs) ** (i + 1) for i in range(pairs)], mpmath.mpf(1)
        case "ntk-mixed":
            a = ln(s) / mpmath.mpf(pairs) ** mpmath.mpf("0.625")
            return [mpmath.exp(a * mpmath.mpf(i + 1) ** mpmath.mpf("0.625")) for i in range(pairs)], mpmath.mpf(1)
        case "soft-clip":
            k = max(round(20 * pairs / 64), 2)
            left = [mpmath.cos(mpmath.pi * j / (2 * (k - 1))) ** 2 for j in range(k)]
            slow = [1 / one if one > mpmath.mpf("1e-4") else mpmath.mpf(10_000) for one in left]
            return [mpmath.mpf(1)] * (pairs - k) + slow, mpmath.mpf(1)
    raised = max(base, 500_000.0) if name == "yarn-rebased" else base
    if name == "yarn-untruncated":
        lo, hi = max(index(32), 0), min(index(1), d - 1)
    elif name == "yarn-rebased":
        lo, hi = max(mpmath.floor(index(32, raised)), 0), min(mpmath.ceil(index(1, raised)), d - 1)
    found = []
    for i in range(pairs):
        frequency = mpmath.mpf(raised) ** (mpmath.mpf(-2 * i) / d)
        ramp = min(max((i - lo) / ((hi - lo) or mpmath.mpf("0.001")), 0), 1)
        found.append(theta[i] / (frequency * (1 - ramp) + frequency / s * ramp))
    return found, 1 + ln(s) * mpmath.mpf("0.07") if name == "yarn-cooler" else warm


@pytest.mark.parametrize(
    "name",
    [
        *("mrrope-uni", "mrrope-pro", "ntk-constant", "ntk-fixed", "ntk-mixed"),
        *("yarn-untruncated", "yarn-cooler", "yarn-rebased", "soft-clip"),
    ],
)
@given(**GEOMETRIES)
def test_forms_of_reviewers_equal_an_independent_computation(
    name: str, base: float, head_dim: int, original: int, scale: int
) -> None:
    geometry = geometry_of(base, head_dim, original)
    factors = methods.closed_form(name, geometry, original * scale)
    with mpmath.workdps(50):
        expected, attention = independent(name, head_dim, base, original, scale)
    assert factors.rescale_factors == pytest.approx([float(one) for one in expected], rel=1e-12)
    assert factors.attention_factor == pytest.approx(float(attention), rel=1e-12)


@pytest.mark.parametrize("name", ["rotation-step", "raised-base", "yarn-narrow"])
@given(**GEOMETRIES)
def test_the_fitted_forms_equal_an_independent_computation(
    name: str, base: float, head_dim: int, original: int, scale: int
) -> None:
    geometry = geometry_of(base, head_dim, original)
    factors = methods.closed_form(name, geometry, original * scale)
    with mpmath.workdps(50):
        exponents = [mpmath.mpf(-2 * i) / head_dim for i in range(head_dim // 2)]
        theta = [mpmath.mpf(base) ** exponent for exponent in exponents]
        match name:
            case "raised-base":
                raised = base * mpmath.mpf(scale) ** mpmath.mpf("1.2")
                expected = [one / raised**exponent for one, exponent in zip(theta, exponents, strict=True)]
            case "yarn-narrow":
                ends = [
                    mpmath.log(original / (mpmath.mpf(str(rotations)) * 2 * mpmath.pi), base)
                    for rotations in (7.0, 0.8)
                ]
                low, high = (head_dim * end / 2 for end in ends)
                low, high = max(mpmath.floor(low), 0), min(mpmath.ceil(high), head_dim - 1)
                shares = [min(max((i - low) / ((high - low) or mpmath.mpf("0.001")), 0), 1) for i in range(len(theta))]
                slowest = mpmath.mpf(scale) ** mpmath.mpf("0.92")
                expected = [1 / (1 - share + share / slowest) for share in shares]
            case _:
                expected = [_stepped(original * one / (2 * mpmath.pi), scale) for one in theta]
        attention = float(mpmath.sqrt(1 + mpmath.log(scale) / mpmath.log(original)))
    assert factors.rescale_factors == pytest.approx([float(one) for one in expected], rel=1e-12)
    assert factors.attention_factor == pytest.approx(attention, rel=1e-12)
