import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.control_as_shipped import ControlAsShipped
from bench.control_longrope2 import ControlLongRope2
from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.methods import USUAL, closed_forms
from factor_search.search.loop import search
from factor_search.search.space import Genome, SearchSpace
from factor_search.search.strategies import Result, Strategy, build_strategy
from factor_search.search.strategies.contract import entropy
from factor_search.search.strategies.curve import Curve
from factor_search.search.strategies.evolution import Evolution, cross, mutate
from factor_search.spec import (
    AutoSpec,
    BudgetSpec,
    CmaSpec,
    EvolutionSpec,
    Nsga2Spec,
    RandomSpec,
    SpaceSpec,
    StrategySpec,
    TpeSpec,
)
from tests.synthetic import SAMPLES, SyntheticEvaluator, contains, geometry, is_monotone

GEOMETRY = geometry(pairs=16)
TARGET = 2048
SMALL = EvolutionSpec(population=12, parents=5, mutants=4, crossovers=4, generations=3)
SEEDS = [factors for name, factors in closed_forms(GEOMETRY, TARGET).items() if name in USUAL]


def loss_of(factors: Factors) -> float:
    wanted = np.linspace(0, 1.8, len(factors.rescale_factors)) ** 2
    return float(np.sum((np.log(factors.rescale_factors) - wanted) ** 2)) + 0.01 * factors.initial_tokens


def results_of(candidates: Iterable[Factors], loss: Callable[[Factors], float] = loss_of) -> list[Result]:
    """The results of candidates in a search on one document."""
    losses = [loss(factors) for factors in candidates]
    return [Result(loss, (loss,) if math.isfinite(loss) else ()) for loss in losses]


SPECS: list[StrategySpec] = [SMALL, AutoSpec(), CmaSpec(), TpeSpec(), Nsga2Spec(), RandomSpec()]


def maker(spec: StrategySpec) -> Callable[[int], Strategy]:
    space = SearchSpace.build(SpaceSpec(), GEOMETRY, TARGET)
    return lambda seed: build_strategy(spec, space, SEEDS, seed, documents=1)


def make_control(seed: int) -> Strategy:
    return ControlAsShipped(
        GEOMETRY, TARGET, seed=seed, population=12, parents=5, mutants=4, crossovers=4, generations=3
    )


@pytest.mark.parametrize(
    "make", [*map(maker, SPECS), make_control], ids=[*(f"{spec.kind}" for spec in SPECS), "control"]
)
class TestStrategyContract:
    """What every strategy promises, whatever it does inside."""

    def drive(self, strategy: Strategy, loss: Callable[[Factors], float] = loss_of) -> list[list[Factors]]:
        generations = []
        while len(generations) < 6 and (proposed := strategy.ask().candidates):
            generations.append(proposed)
            strategy.tell(results_of(proposed, loss))
        return generations

    def test_it_repeats_nothing(self, make: Callable[[int], Strategy]) -> None:
        proposed = list(itertools.chain(*self.drive(make(0))))
        assert len(proposed) == len(set(proposed)) > 20

    def test_it_is_a_function_of_its_seed(self, make: Callable[[int], Strategy]) -> None:
        assert self.drive(make(1)) == self.drive(make(1))
        assert self.drive(make(1)) != self.drive(make(2))

    def test_candidates_are_monotone_and_bounded(self, make: Callable[[int], Strategy]) -> None:
        for factors in itertools.chain(*self.drive(make(0))):
            assert is_monotone(factors)
            assert 1.0 <= factors.rescale_factors[0] <= factors.rescale_factors[-1] <= 1.25 * 8

    def test_it_survives_the_failure_of_every_candidate(self, make: Callable[[int], Strategy]) -> None:
        assert self.drive(make(0), lambda factors: float("inf"))

    def test_it_survives_the_failure_of_some_candidates(self, make: Callable[[int], Strategy]) -> None:
        def some(factors: Factors) -> float:
            return float("inf") if int(factors.sha256, 16) % 3 else loss_of(factors)

        assert len(self.drive(make(0), some)) >= 4

    def test_fewer_results_than_proposals(self, make: Callable[[int], Strategy]) -> None:
        strategy = make(0)
        strategy.tell(results_of(strategy.ask().candidates[:7]))
        second = strategy.ask().candidates
        assert second
        strategy.tell([])
        assert not set(second) & set(strategy.ask().candidates)


OPTIMUM = [1.0] * 6 + [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 6.0, 7.0, 7.0]
RESTRICTED = SpaceSpec(attention_factor="search", critical_dimension="search")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
class TestBuiltStrategies:
    """What every strategy of a specification promises beyond that."""

    @pytest.mark.parametrize(
        "space_spec",
        [SpaceSpec(), SpaceSpec(attention_factor="search", initial_tokens=[4]), SpaceSpec(monotone=False), RESTRICTED],
        ids=["plain", "attention", "any-order", "restricted"],
    )
    def test_candidates_lie_in_the_space(self, spec: StrategySpec, space_spec: SpaceSpec) -> None:
        space = SearchSpace.build(space_spec, GEOMETRY, TARGET)
        proposed = list(
            itertools.chain(*TestStrategyContract().drive(build_strategy(spec, space, SEEDS, 0, documents=1)))
        )
        assert all(contains(space, factors) for factors in proposed)
        assert len(proposed) == len(set(proposed)) > 20

    def test_it_starts_with_the_closed_forms(self, spec: StrategySpec) -> None:
        space = SearchSpace.build(RESTRICTED, GEOMETRY, TARGET)
        first = build_strategy(spec, space, SEEDS, 0, documents=1).ask().candidates
        projected = list(dict.fromkeys(space.factors(space.project(factors)) for factors in SEEDS))
        assert list(first[: len(projected)]) == projected

    def test_it_beats_the_closed_forms(self, spec: StrategySpec) -> None:
        """Random curves must only do no worse."""
        space = SearchSpace.build(SpaceSpec(attention_factor="search"), GEOMETRY, TARGET)
        evaluator = SyntheticEvaluator(OPTIMUM)
        best_seed = min(evaluator.evaluate(space.factors(space.project(one)), SAMPLES).loss for one in SEEDS) - 1
        settings = EvolutionSpec() if spec is SMALL else spec
        state = search(
            build_strategy(settings, space, SEEDS, 0, documents=1), evaluator, SAMPLES, BudgetSpec(candidates=300)
        )
        assert state.best is not None
        share = {"cma": 0.1, "tpe": 0.15, "nsga2": 0.3, "random": 1.0}.get(spec.kind, 0.8)
        assert state.best.loss - 1 <= share * best_seed

    def test_a_tiny_space_is_exhausted_not_repeated(self, spec: StrategySpec) -> None:
        """Of 12 candidates; steps that the grid swallows end ``auto`` before it has seen most of them."""
        space = SearchSpace(2, 0.25, 2, True, (0, 4), (1.0,), rotations=(8.0, 0.5), scale=1.2)
        strategy = build_strategy(spec, space, [Factors.of([1.0, 1.5])], 0, documents=1)
        seen: list[Factors] = []
        while proposed := strategy.ask().candidates:
            seen += proposed
            strategy.tell(results_of(proposed))
        assert len(seen) == len(set(seen)) > (3 if spec.kind == "auto" else 6)


def test_nsga2_minds_the_loss_within_the_original_length() -> None:
    """The losses at the target are equal here, so only the other objective leads anywhere."""
    space = SearchSpace.build(SpaceSpec(), GEOMETRY, TARGET)
    strategy = build_strategy(Nsga2Spec(), space, SEEDS, 0, documents=1)
    best: list[float] = []
    for _ in range(12):
        short = [loss_of(factors) for factors in strategy.ask().candidates]
        best.append(min(short))
        strategy.tell([Result(1.0, short_loss=loss) for loss in short])
    assert min(best) < 0.8 * best[0]


spaces = st.builds(
    SearchSpace,
    pairs=st.integers(2, 40),
    step=st.sampled_from([0.01, 0.1, 0.25]),
    top_level=st.integers(1, 2000),
    monotone=st.booleans(),
    initial_tokens=st.sampled_from([(0,), (0, 1, 2, 4), (3, 64)]),
    attention_factors=st.sampled_from([(1.0,), (1.0, 1.1, 1.2)]),
)


@st.composite
def genomes(draw: st.DrawFn, space: SearchSpace) -> Genome:
    levels = draw(st.lists(st.integers(0, space.top_level), min_size=space.pairs, max_size=space.pairs))
    return Genome(
        tuple(sorted(levels) if space.monotone else levels),
        draw(st.integers(0, len(space.initial_tokens) - 1)),
        draw(st.integers(0, len(space.attention_factors) - 1)),
    )


@given(spaces, st.data())
def test_a_genome_survives_the_way_through_factors(space: SearchSpace, data: st.DataObject) -> None:
    genome = data.draw(genomes(space))
    assert space.project(space.factors(genome)) == genome
    assert contains(space, space.factors(genome))


@given(spaces, st.data())
def test_projection_always_lands_in_the_space(space: SearchSpace, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(0.01, 1e4), min_size=space.pairs, max_size=space.pairs))
    factors = Factors.of(values, data.draw(st.integers(0, 300)), data.draw(st.floats(0.5, 2)))
    assert contains(space, space.factors(space.project(factors)))


@settings(deadline=None)
@given(spaces, st.integers(0, 2**32), st.data())
def test_mutants_and_children_stay_in_the_space(space: SearchSpace, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    first, second = data.draw(genomes(space)), data.draw(genomes(space))
    assert contains(space, space.factors(mutate(first, space, 0.3, rng)))
    child = cross(first, second, space, rng)
    assert contains(space, space.factors(child))
    assert all(gene in parents for gene, *parents in zip(child.levels, first.levels, second.levels, strict=True))


@settings(deadline=None, max_examples=25)
@given(spaces, st.integers(0, 2**32), st.integers(1, 6))
def test_evolution_on_any_space_ends_without_repeating_itself(space: SearchSpace, seed: int, seeds: int) -> None:
    """Tiny spaces run out of candidates: generations get smaller, loops stay bounded."""
    starts = [Factors.of([1.0 + n] * space.pairs) for n in range(seeds)]
    strategy = Evolution(SMALL, space, starts, seed=seed)
    seen: list[Factors] = []
    while proposed := strategy.ask().candidates:
        seen += proposed
        strategy.tell(results_of(proposed))
    assert len(seen) == len(set(seen)) <= 12 + 3 * 8
    assert all(contains(space, factors) for factors in seen)


def test_the_first_generation_begins_with_the_seeds() -> None:
    space = SearchSpace.build(SpaceSpec(), GEOMETRY, TARGET)
    first = Evolution(SMALL, space, SEEDS, seed=0).ask().candidates
    projected = list(dict.fromkeys(space.factors(space.project(factors)) for factors in SEEDS))
    assert list(first[: len(projected)]) == projected
    assert len(first) == SMALL.population


def test_mutation_rate_is_the_rate_of_genes_redrawn() -> None:
    """With wide gaps between neighbours nearly every redrawn gene changes, so the rate can be counted."""
    space = SearchSpace.build(SpaceSpec(step=0.001, upper_bound=100), geometry(pairs=32), TARGET)
    rng = np.random.default_rng(0)
    parent = Genome(tuple(range(1000, 33000, 1000)), 0, 0)
    changed = [
        sum(a != b for a, b in zip(parent.levels, mutate(parent, space, 0.3, rng).levels, strict=True))
        for _ in range(500)
    ]
    assert 0.28 * 32 < np.mean(changed) < 0.32 * 32


def test_crossover_takes_about_half_of_each_parent() -> None:
    space = SearchSpace.build(SpaceSpec(), geometry(pairs=32), TARGET)
    rng = np.random.default_rng(0)
    first, second = Genome(tuple(range(0, 640, 20)), 0, 0), Genome(tuple(range(10, 650, 20)), 3, 0)
    children = [cross(first, second, space, rng) for _ in range(400)]
    shares = [np.mean([gene % 20 == 0 for gene in child.levels]) for child in children]
    assert 0.45 < np.mean(shares) < 0.55
    assert {child.initial_tokens for child in children} == {0, 3}


def test_random_numbers_are_those_of_earlier_versions() -> None:
    """They had the number of a stage behind the seed, which was always 0."""
    assert entropy(7, 3) == [7, 0, 3]


def test_the_space_of_the_paper() -> None:
    space = SearchSpace.build(SpaceSpec(), GEOMETRY, TARGET)
    assert space.factors(Genome((0,) * 15 + (space.top_level,), 0, 0)).rescale_factors[-1] == 1.25 * 8
    assert space.step == 0.01
    assert space.initial_tokens == (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
    assert len(space.attention_factors) == 1


def test_attention_factor_fixed_or_searched() -> None:
    assert SearchSpace.build(SpaceSpec(attention_factor=1.05), GEOMETRY, TARGET).attention_factors == (1.05,)
    searched = SearchSpace.build(SpaceSpec(attention_factor="search"), GEOMETRY, TARGET).attention_factors
    assert searched[0] == 1.0
    assert searched[-1] == pytest.approx(1 + 0.2 * np.log(8), abs=0.01)


def test_impossible_spaces() -> None:
    with pytest.raises(SpecError, match="must be larger"):
        SearchSpace.build(SpaceSpec(), GEOMETRY, 256)
    assert SearchSpace.build(SpaceSpec(), geometry(original=64), TARGET).initial_tokens[-1] == 64
    with pytest.raises(SpecError, match="beyond the original length"):
        SearchSpace.build(SpaceSpec(initial_tokens=[300]), GEOMETRY, TARGET)


def test_failed_candidates_do_not_breed() -> None:
    """Only the seeds are finite here, so every later candidate descends from them."""
    space = SearchSpace.build(SpaceSpec(), GEOMETRY, TARGET)
    strategy = Evolution(EvolutionSpec(population=12, parents=10, mutation_rate=0.01), space, SEEDS, seed=0)
    first = strategy.ask().candidates
    alive = first[:2]
    strategy.tell(results_of(first, lambda factors: 1.0 if factors in alive else math.inf))
    for child in strategy.ask().candidates:
        near = [sum(a != b for a, b in zip(child.rescale_factors, f.rescale_factors, strict=True)) for f in alive]
        mixed = all(
            gene in genes
            for gene, *genes in zip(child.rescale_factors, *(f.rescale_factors for f in alive), strict=True)
        )
        assert min(near) <= 3 or mixed


def test_the_control_changes_nearly_every_gene_of_its_first_mutants() -> None:
    """As described of the public implementation: about 58 of 64."""
    control = ControlAsShipped(geometry(pairs=64, original=4096), 8 * 4096, seed=0)
    start, *mutants = control.ask().candidates
    changed = [sum(a != b for a, b in zip(start.rescale_factors, m.rescale_factors, strict=True)) for m in mutants]
    assert 55 <= np.mean(changed) <= 64
    child = control.cross(start.rescale_factors, mutants[0].rescale_factors)
    assert sum(a != b for a, b in zip(child, start.rescale_factors, strict=True)) <= 1


def test_the_control_of_longrope2_is_free_from_the_critical_pair_on() -> None:
    control = ControlLongRope2(
        geometry(pairs=32, original=4096), 8 * 4096, seed=0, population=24, mutants=10, crossovers=6
    )
    theoretical, seen = math.ceil(geometry(pairs=32, original=4096).critical_dimension / 2), set[Factors]()
    for generation in range(6):
        candidates = control.ask().candidates
        assert len(candidates) == (24 if generation == 0 else 16)
        assert seen.isdisjoint(candidates)
        seen.update(candidates)
        for one in candidates:
            logs = np.log(one.rescale_factors)
            assert is_monotone(one)
            assert one.rescale_factors[0] == 1.0
            assert max(one.rescale_factors) <= 16 + 1e-9
            steps = np.diff(logs)
            geometric = int(np.argmin(np.isclose(steps, steps[0], rtol=1e-6)))
            assert geometric >= theoretical - 6
            assert all(factor >= 8 - 1e-9 for factor in one.rescale_factors[geometric:])
        control.tell(results_of(candidates, lambda factors: factors.rescale_factors[-1]))
    assert min(one.rescale_factors[-1] for one in seen) < 9


@settings(deadline=None, max_examples=50)
@given(spaces, st.integers(2, 12), st.data())
def test_any_vector_is_a_candidate_in_the_space(space: SearchSpace, knots: int, data: st.DataObject) -> None:
    curve = Curve(space, knots)
    size = len(curve.bounds)
    values = data.draw(st.lists(st.floats(-1e3, 1e3), min_size=size, max_size=size))
    factors = curve.factors(np.array(values))
    assert contains(space, factors)
    assert is_monotone(factors) or not space.monotone
    low, high = curve.bounds.T
    back = curve.vector(factors)
    assert np.all((low <= back) & (back <= high))


@settings(deadline=None, max_examples=50)
@given(spaces, st.integers(2, 12), st.data())
def test_a_curve_survives_the_way_through_factors(space: SearchSpace, knots: int, data: st.DataObject) -> None:
    """But for the grid: half a step on each factor, in a fit whose worst weights sum to less than four."""
    curve = Curve(space, knots)
    low, high = curve.bounds.T
    shares = data.draw(st.lists(st.floats(0, 1), min_size=len(low), max_size=len(low)))
    vector = low + (high - low) * np.array(shares)
    vector[: curve.shape_size].sort()
    factors = curve.factors(vector)
    again = curve.factors(curve.vector(factors))
    distance = np.abs(np.log(factors.rescale_factors) - np.log(again.rescale_factors))
    assert np.max(distance) <= 4 * space.step
    assert (again.initial_tokens, again.attention_factor) == (factors.initial_tokens, factors.attention_factor)


@pytest.mark.parametrize("pairs", [16, 32, 64])
def test_closed_forms_are_nearly_curves(pairs: int) -> None:
    """Worst of the usual ones is YaRN, whose ramp bends between knots. The soft clip rises without bound."""
    wide = geometry(pairs=pairs, original=4096)
    space = SearchSpace.build(SpaceSpec(), wide, 8 * 4096)
    curve = Curve(space, 8)
    for name, factors in closed_forms(wide, 8 * 4096).items():
        start = space.factors(space.project(factors))
        logs = np.log(start.rescale_factors) - np.log(curve.factors(curve.vector(start)).rescale_factors)
        assert np.sqrt(np.mean(logs**2)) < (0.12 if name in USUAL else 0.25), name


def test_a_small_model_has_a_knot_at_each_pair() -> None:
    space = SearchSpace.build(SpaceSpec(initial_tokens=[0]), geometry(pairs=4), TARGET)
    assert len(Curve(space, 8).bounds) == 4
    assert Curve(space, 8).factors(np.log([1.0, 2.0, 3.0, 4.0])).rescale_factors == (1.0, 2.0, 3.0, 4.0)


def test_before_the_critical_pair_factors_follow_ntk() -> None:
    """LongRoPE2, 2502.20082: a changed base up to the critical dimension, free factors beyond."""
    space = SearchSpace.build(SpaceSpec(critical_dimension=12), GEOMETRY, TARGET)
    for factors in itertools.chain(*TestStrategyContract().drive(build_strategy(SMALL, space, SEEDS, 0, documents=1))):
        top = factors.rescale_factors[6]
        assert factors.rescale_factors[:6] == pytest.approx([top ** (i / 6) for i in range(6)], abs=0.0051)


def test_every_critical_pair_is_tried() -> None:
    wide = geometry(pairs=64, original=4096)
    space = SearchSpace.build(SpaceSpec(critical_dimension="search"), wide, 8 * 4096)
    theoretical = wide.critical_dimension // 2
    assert space.critical_pairs == tuple(range(theoretical // 2, theoretical + 1))
    rng = np.random.default_rng(0)
    genome = space.project(closed_forms(wide, 8 * 4096)["ntk"])
    assert space.gene_bounds(genome.levels, theoretical, theoretical)[0] == 0
    assert {mutate(genome, space, 0.5, rng).critical for _ in range(500)} == set(range(len(space.critical_pairs)))


@settings(deadline=None)
@given(spaces, st.integers(0, 2**32), st.data())
def test_restricted_genomes_stay_restricted(space: SearchSpace, seed: int, data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.integers(1, space.pairs - 1), min_size=1, max_size=4, unique=True))
    space = replace(space, critical_pairs=tuple(sorted(pairs)))
    rng = np.random.default_rng(seed)
    first, second = (space.project(space.factors(data.draw(genomes(space)))) for _ in range(2))
    for genome in (first, second, mutate(first, space, 0.5, rng), cross(first, second, space, rng)):
        assert space.restrict(genome).levels == genome.levels
        assert contains(space, space.factors(genome))
        assert is_monotone(space.factors(genome)) or not space.monotone


def test_impossible_critical_dimensions() -> None:
    with pytest.raises(SpecError, match="leaves a pair free"):
        SearchSpace.build(SpaceSpec(critical_dimension=32), GEOMETRY, TARGET)
    for value in (0, 7, 4.0, True, "all"):
        with pytest.raises(ValueError, match="critical_dimension"):
            SpaceSpec.model_validate({"critical_dimension": value})
