"""Curves over rotations: what candidates they stand for, on any model."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factor_search.factors import Factors
from factor_search.search.space import Genome, SearchSpace
from factor_search.search.strategies.profile import (
    BOUNDS,
    FAR_BOUNDS,
    FIRST,
    LARGE_SCALE,
    SHORT_TEXTS,
    Profile,
    Steps,
    first_profiles,
    reaches_far,
    scaled_before_step,
    sharpened,
    softened,
)
from tests.synthetic import contains, is_monotone

PUBLISHED = Path(
    os.environ.get("FACTOR_SEARCH_PUBLISHED") or Path(__file__).parents[2] / "shared" / "data" / "published"
)


def space_of(pairs: int, base: float, original: float, scale: float, step: float = 0.01) -> SearchSpace:
    rotations = tuple(original / (2 * math.pi) * base ** (-i / pairs) for i in range(pairs))
    return SearchSpace(
        pairs, step, math.floor((8 * scale - 1) / step), True, (0, 4), (1.0, 1.1), rotations=rotations, scale=scale
    )


SHORT = ("4k", "8k", "phi35_mini_short", "minicpm")
"""Readjusted factors for short texts, and those of which scales below 16 are said."""
LLAMA = space_of(64, 10_000.0, 4096.0, 8.0)
spaces = st.builds(
    space_of,
    pairs=st.integers(1, 40),
    base=st.sampled_from([1.5, 100.0, 1e4, 5e5, 1e7]),
    original=st.sampled_from([1.0, 64.0, 4096.0, 1e6]),
    scale=st.sampled_from([1.1, 2.0, 8.0, 64.0]),
    step=st.sampled_from([0.01, 0.25]),
)
"""Models of one pair or two, and those whose pairs all make many rotations, or none, among them."""


@st.composite
def bases(draw: st.DrawFn, space: SearchSpace) -> Factors:
    levels = draw(st.lists(st.integers(0, space.top_level), min_size=space.pairs, max_size=space.pairs))
    return space.factors(Genome(tuple(sorted(levels)), draw(st.integers(0, 1)), draw(st.integers(0, 1))))


@settings(deadline=None)
@given(spaces, st.tuples(*(st.floats(low, high) for low, high in FAR_BOUNDS.tolist())))
def test_every_profile_is_a_candidate_in_the_space(space: SearchSpace, values: tuple[float, ...]) -> None:
    for profile in (Profile(*values), *first_profiles(space), *SHORT_TEXTS):
        factors = profile.factors(space, 4, 1.1)
        assert contains(space, factors)
        assert is_monotone(factors)
        assert (factors.initial_tokens, factors.attention_factor) == (4, 1.1)


def test_the_first_profiles_are_within_the_bounds() -> None:
    scales = (4.0, LARGE_SCALE, 16.0, 64.0, 256.0)
    near = [(first_profiles(small_model(scale)), BOUNDS) for scale in scales]
    far = [(first_profiles(space_of(64, 500_000.0, 131_072.0, scale)), FAR_BOUNDS) for scale in scales]
    for profiles, bounds in ((FIRST, BOUNDS), (SHORT_TEXTS, BOUNDS), *near, *far):
        for profile in profiles:
            values = [profile.step, profile.before_step, profile.level, profile.start]
            assert all(low <= value <= high for value, (low, high) in zip(values, bounds, strict=True))


@pytest.mark.parametrize(
    "file", [file for file in sorted(PUBLISHED.glob("*.json")) if not file.stem.startswith(SHORT)] or [None]
)
def test_what_is_published_can_be_drawn(file: Path | None) -> None:
    """Factors for 16 to 512 times the length: a profile comes near, and the rises of a curve around it nearer."""
    if file is None:
        pytest.skip("the folder of published vectors is not here")
    document = json.loads(file.read_text())
    model, scale, pairs = document["model"], document["scale"], len(document["rescale_factors"])
    space = space_of(pairs, model["rope_theta"], model["original_length"], scale)
    heights = np.log(np.maximum(document["rescale_factors"], 1.0)) / math.log(scale)
    low, high = FAR_BOUNDS.T
    drawn = [Profile(*row) for row in np.random.default_rng(0).uniform(low, high, (1500, 4))]

    def off(factors: Factors) -> float:
        return float(np.sqrt(np.mean((np.log(factors.rescale_factors) / math.log(scale) - heights) ** 2)))

    nearest = min((profile.factors(space, 0, 1.0) for profile in drawn), key=off)
    steps = Steps(space, nearest, 7)
    assert len(steps.start) == 10, "two knots stand where pairs make many rotations"
    assert off(nearest) < 0.1
    assert off(steps.factors(steps.vector(document["rescale_factors"]))) < 0.07
    assert reaches_far(space)
    assert not reaches_far(space_of(pairs, model["rope_theta"], 256, scale))


@pytest.mark.parametrize("level", [0.8, 1.0, 1.3])
def test_a_profile_by_its_numbers(level: float) -> None:
    factors = Profile(step=-0.5, before_step=0.3, level=level, start=3.0).factors(LLAMA, 0, 1.0)
    for rotations, factor in zip(LLAMA.rotations, factors.rescale_factors, strict=True):
        octaves = math.log2(rotations)
        if octaves >= 3.0:
            assert factor == 1.0
        elif octaves >= -0.25:  # the step is half an octave wide
            assert factor == pytest.approx(8 ** (0.3 * (3.0 - octaves) / 3.25), abs=0.006)
        elif octaves <= -0.75:
            assert factor == pytest.approx(8**level, abs=0.006)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_scaling_down_before_the_step_keeps_the_level(share: float) -> None:
    base = Profile(step=-0.5, before_step=0.3, level=0.9, start=3.0).factors(LLAMA, 4, 1.1)
    lower = scaled_before_step(LLAMA, base, share)
    assert (lower.initial_tokens, lower.attention_factor) == (4, 1.1)
    steepest = max(range(1, 64), key=lambda i: math.log(base.rescale_factors[i] / base.rescale_factors[i - 1]))
    assert lower.rescale_factors[steepest:] == base.rescale_factors[steepest:]
    assert lower.rescale_factors[:steepest] == pytest.approx(
        [f**share for f in base.rescale_factors[:steepest]], abs=0.006
    )
    assert (lower == base) == (share == 1.0)


@settings(deadline=None)
@given(st.data(), spaces, st.floats(0, 1))
def test_scaling_down_before_the_step_stays_in_the_space(data: st.DataObject, space: SearchSpace, share: float) -> None:
    base = data.draw(bases(space))
    lower = scaled_before_step(space, base, share)
    assert contains(space, lower)
    assert is_monotone(lower)
    assert all(one <= other for one, other in zip(lower.rescale_factors, base.rescale_factors, strict=True))


def test_a_profile_means_the_same_on_another_model() -> None:
    """Twice the length at which pairs make as many rotations: the same factors."""
    slower = SearchSpace(64, 0.01, 6300, True, (0,), (1.0,), rotations=LLAMA.rotations, scale=8.0)
    longer = space_of(64, 10_000.0, 2 * 4096.0, 8.0)
    for profile in FIRST:
        one = profile.factors(LLAMA, 0, 1.0).rescale_factors
        assert profile.factors(slower, 0, 1.0).rescale_factors == one
        shifted = np.interp(-np.log2(longer.rotations), -np.log2(LLAMA.rotations), one)
        assert profile.factors(longer, 0, 1.0).rescale_factors == pytest.approx(shifted, rel=0.15)


@settings(deadline=None)
@given(spaces, st.sampled_from([2, 7, 8, 16]), st.data())
def test_steps_begin_at_the_base(space: SearchSpace, knots: int, data: st.DataObject) -> None:
    base = data.draw(bases(space))
    steps = Steps(space, base, knots)
    assert steps.factors(steps.start) == base


def test_the_rises_of_a_curve_are_read_off_its_rescale_factors() -> None:
    steps = Steps(LLAMA, FIRST[0].factors(LLAMA, 0, 1.0), 7)
    rises = steps.start + 0.02
    assert steps.vector(steps.factors(rises).rescale_factors) == pytest.approx(rises, abs=0.01)


@settings(deadline=None)
@given(spaces, st.sampled_from([2, 7, 16]), st.sampled_from([0.1, 1.5, 1e3]), st.data())
def test_any_rises_are_a_candidate_in_the_space(
    space: SearchSpace, knots: int, size: float, data: st.DataObject
) -> None:
    """CMA-ES knows no bounds."""
    steps = Steps(space, data.draw(bases(space)), knots)
    count = len(steps.start)
    assert 1 <= count == len(steps.bounds) <= knots + 3
    rises = data.draw(st.lists(st.floats(-size, size), min_size=count, max_size=count))
    factors = steps.factors(np.array(rises))
    assert contains(space, factors)
    assert is_monotone(factors)


def test_a_rise_lifts_what_comes_after_it_and_nothing_before() -> None:
    base = FIRST[0].factors(LLAMA, 0, 1.0)
    steps = Steps(LLAMA, base, 7)
    before = np.array(base.rescale_factors)
    untouched = []
    for knot in range(len(steps.start)):
        rises = steps.start.copy()
        rises[knot] += 0.1
        change = np.array(steps.factors(rises).rescale_factors) - before
        lifted = np.flatnonzero(change > 0.01)
        assert change.min() >= 0
        assert change[-1] == pytest.approx(before[-1] * (8**0.1 - 1), abs=0.02)
        untouched.append(int(lifted[0]))
    assert untouched == sorted(set(untouched))
    assert LLAMA.rotations[untouched[0]] <= 2**4.0


def test_knots_stand_where_pairs_make_few_rotations() -> None:
    """Eight rotations to a fifth of one, and the last pair: on a model of 64 pairs nearly all of them."""
    steps = Steps(LLAMA, Factors.of([1.0] * 64), 7)
    assert len(steps.start) == 8
    rises = np.zeros(8)
    rises[7] = 0.5
    last = np.array(steps.factors(rises).rescale_factors)
    assert np.all(last[np.array(LLAMA.rotations) > 0.21] == 1.0)
    assert last[-1] == pytest.approx(8**0.5, abs=0.006)


def small_model(scale: float) -> SearchSpace:
    """Of 256 tokens and a base of 10,000, whose fastest pair makes 41 rotations."""
    return space_of(32, 10_000.0, 256.0, scale)


def test_first_profiles_of_small_scales_are_those_of_earlier_versions() -> None:
    assert first_profiles(small_model(8.0)) == FIRST
    assert first_profiles(small_model(LARGE_SCALE))[-len(FIRST) :] == FIRST


@pytest.mark.parametrize("original", [4096.0, 8192.0, 131_072.0])
def test_where_pairs_make_many_rotations_the_first_profiles_rise_from_the_fastest_on(original: float) -> None:
    space = space_of(64, 500_000.0, original, 4.0)
    first, second, third, *_ = first_profiles(space)
    for profile in (first, second):
        factors = profile.factors(space, 0, 1.0).rescale_factors
        assert 1.0 < factors[4] < factors[8] < factors[16], "no pair but the fastest keeps its frequency"
        assert factors[0] == 1.0
    within = sum(rotations > max(space.rotations) / 4 for rotations in space.rotations)
    assert set(third.factors(space, 0, 1.0).rescale_factors[:within]) == {1.0}
    assert third.factors(space, 0, 1.0).rescale_factors[within + 2] > 1.0


def test_first_profiles_of_large_scales_jump_by_a_factor_whatever_the_scale() -> None:
    for scale in (16.0, 64.0):
        first, *_ = first_profiles(small_model(scale))
        assert (first.level - first.before_step) * math.log(scale) == pytest.approx(1.0)
        assert first.level == 1.0


@given(spaces, st.data())
def test_the_pair_in_the_middle_of_the_step_is_taken_out_of_it(space: SearchSpace, data: st.DataObject) -> None:
    base = data.draw(bases(space))
    found = sharpened(space, base)
    assert len(found) == (2 if space.pairs >= 3 else 0)
    for factors in found:
        assert contains(space, factors)
        assert is_monotone(factors)


def test_a_pair_beside_the_step_is_moved_into_it() -> None:
    base = Factors.of([1.0, 1.5, 2.0, 8.0, 8.0, *[9.0] * 27], 4, 1.0)
    space = small_model(16.0)
    before_up, behind_down, *_ = softened(space, base, (0.5, 0.25))
    assert before_up.rescale_factors[:4] == pytest.approx([1.0, 1.5, 4.0, 8.0], abs=0.006)
    assert behind_down.rescale_factors[:5] == pytest.approx([1.0, 1.5, 2.0, 4.0, 8.0], abs=0.006)


@given(spaces, st.data())
def test_moved_pairs_stay_in_the_space(space: SearchSpace, data: st.DataObject) -> None:
    base = data.draw(bases(space))
    if space.pairs > 1:
        for factors in softened(space, base, (0.25, 0.5)):
            assert contains(space, factors)
            assert is_monotone(factors)
            assert sum(a != b for a, b in zip(base.rescale_factors, factors.rescale_factors, strict=True)) <= 1


def test_the_middle_is_the_pair_with_a_rise_on_both_sides() -> None:
    base = Factors.of([1.0, 1.5, 2.0, 5.0, 12.0, 13.0, *[13.0] * 26], 4, 1.0)
    up, down = sharpened(space_of(32, 10_000.0, 128.0, 16.0), base)
    assert up.rescale_factors[:6] == pytest.approx((1.0, 1.5, 2.0, 12.0, 12.0, 13.0))
    assert down.rescale_factors[:6] == pytest.approx((1.0, 1.5, 2.0, 2.0, 12.0, 13.0))
    assert up.initial_tokens == down.initial_tokens == 4
