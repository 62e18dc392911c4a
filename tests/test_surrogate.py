"""The Gaussian process behind the default strategy, on functions that are known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factor_search.search.strategies.surrogate import GaussianProcess, Matrix, Vector, propose

BOUNDS = np.array([[-2.0, 2.0]] * 4)


def smooth(points: Matrix) -> Vector:
    return np.asarray(np.sin(points[:, 0]) + 0.5 * points[:, 1] ** 2)


def drawn(count: int, dimensions: int = 2, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).uniform(-1.5, 1.5, (count, dimensions))


def test_it_predicts_what_it_has_not_seen() -> None:
    known, held_out = drawn(60), drawn(200, seed=1)
    expected, deviation = GaussianProcess(known, smooth(known)).predict(held_out)
    errors = np.abs(expected - smooth(held_out))
    assert np.sqrt(np.mean(errors**2)) < 0.02 * smooth(held_out).std()
    assert np.mean(errors < 3 * deviation) > 0.95


def test_it_passes_through_what_it_knows() -> None:
    known = drawn(40)
    expected, deviation = GaussianProcess(known, smooth(known)).predict(known)
    assert expected == pytest.approx(smooth(known), abs=0.01)
    assert deviation.max() < 0.02


def test_it_is_less_sure_further_away() -> None:
    process = GaussianProcess(drawn(40), smooth(drawn(40)))
    _, deviation = process.predict(np.array([[0.0, 0.0], [2.5, 2.5], [5.0, 5.0]]))
    assert 3 * deviation[0] < deviation[1] < deviation[2]


def test_it_smooths_what_is_rugged() -> None:
    known, noise = drawn(150), 0.2 * np.random.default_rng(2).normal(size=150)
    expected, _ = GaussianProcess(known, smooth(known) + noise).predict(drawn(100, seed=1))
    assert np.sqrt(np.mean((expected - smooth(drawn(100, seed=1))) ** 2)) < 0.1


def test_prediction_does_not_depend_on_the_unit_of_losses() -> None:
    known, others = drawn(30), drawn(20, seed=1)
    expected, deviation = GaussianProcess(known, smooth(known)).predict(others)
    scaled, scaled_deviation = GaussianProcess(known, 7 + 0.001 * smooth(known)).predict(others)
    assert scaled == pytest.approx(7 + 0.001 * expected, abs=1e-8)
    assert scaled_deviation == pytest.approx(0.001 * deviation, rel=1e-6)


def suggest(points: Matrix, losses: Vector, seed: int = 0, **changes: float) -> list[Vector]:
    dimensions = points.shape[1]
    return propose(
        points,
        losses.tolist(),
        widths=np.full(dimensions, changes.get("width", 0.5)),
        bounds=BOUNDS[:dimensions],
        radius=changes.get("radius", 1.0),
        count=int(changes.get("count", 4)),
        rng=np.random.default_rng(seed),
    )


def quadratic(points: Matrix) -> Vector:
    return np.asarray(((points - [0.7, -1.1, 0.2, 1.4]) ** 2).sum(axis=1))


@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_of_a_quadratic_is_found_in_a_few_generations(seed: int) -> None:
    points = drawn(6, 4, seed)
    for generation in range(10):
        points = np.concatenate([points, suggest(points, quadratic(points), seed=generation)])
    assert quadratic(points).min() < 0.02
    assert quadratic(drawn(46, 4, seed)).min() > 0.2


def test_a_minimum_at_the_edge_is_found() -> None:
    def slope(points: Matrix) -> Vector:
        return np.asarray(points.sum(axis=1))

    points = drawn(6, 3)
    for generation in range(8):
        points = np.concatenate([points, suggest(points, slope(points), seed=generation)])
    assert slope(points).min() == pytest.approx(-6.0, abs=0.05)


def test_proposals_are_a_function_of_what_is_known_and_of_the_seed() -> None:
    one, same, other = (suggest(drawn(8, 4), quadratic(drawn(8, 4)), seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_proposals_stay_close_when_the_radius_is_small() -> None:
    points = drawn(30, 4)
    losses = quadratic(points)
    best = points[losses.argmin()]
    for vector in suggest(points, losses, radius=0.1):
        assert min(np.abs(vector - best).max(), *(np.abs(vector - point).max() for point in points)) < 0.5


LOSSES: dict[str, Callable[[int], Vector]] = {
    "equal": lambda count: np.ones(count),
    "one outlier": lambda count: np.array([1.0] * (count - 1) + [50.0]),
    "far apart": lambda count: np.geomspace(1e-6, 1e6, count),
    "close": lambda count: 3 + 1e-12 * np.arange(count),
}


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("count", [1, 2, 25])
@pytest.mark.parametrize("duplicates", [1, 3])
def test_awkward_losses_and_points(losses: str, count: int, duplicates: int) -> None:
    points = np.repeat(drawn(count, 4), duplicates, axis=0)
    proposed = suggest(points, LOSSES[losses](count * duplicates))
    assert len(proposed) == 4
    assert np.isfinite(proposed).all()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4),
    st.lists(st.floats(1.0, 20.0), min_size=1, max_size=12),
    st.sampled_from([0.05, 0.3, 1.5]),
    st.integers(0, 2**32),
)
def test_proposals_are_within_bounds_and_differ(dimensions: int, losses: list[float], radius: float, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-2, 2, (len(losses), dimensions))
    proposed = np.array(suggest(points, np.array(losses), seed=seed, radius=radius))
    assert proposed.shape == (4, dimensions)
    assert np.all((BOUNDS[:dimensions, 0] <= proposed) & (proposed <= BOUNDS[:dimensions, 1]))
    assert len(np.unique(np.concatenate([points, proposed]), axis=0)) == len(np.unique(points, axis=0)) + 4
    assert not math.isnan(proposed.sum())


def test_proposals_of_a_generation_explore_different_places() -> None:
    """Each counts on those before it; otherwise all would crowd around the most promising points."""
    points = np.array([[-1.0], [0.0], [1.0]])
    places = {round(float(vector[0]), 1) for vector in suggest(points, np.array([1.0, 0.9, 1.0]), radius=2.0)}
    assert len(places) >= 3
