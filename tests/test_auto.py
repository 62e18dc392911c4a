"""The default strategy, searching on several documents with racing."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, PRUNED
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.race import rungs
from factor_search.methods import USUAL, closed_forms
from factor_search.search.loop import SearchState, search
from factor_search.search.space import SearchSpace
from factor_search.search.strategies import Result
from factor_search.search.strategies.auto import SETTINGS, Auto
from factor_search.search.strategies.contract import Generation
from factor_search.search.strategies.progressive import PROMOTED
from factor_search.spec import BudgetSpec, SpaceSpec
from tests.synthetic import ManyDocuments, contains, geometry, many_documents

GEOMETRY = geometry(pairs=32)
SCALE = 8
TARGET = SCALE * GEOMETRY.original_length
FORMS = closed_forms(GEOMETRY, TARGET)
SEEDS = [factors for name, factors in FORMS.items() if name in USUAL]
LATER = [factors for name, factors in FORMS.items() if name not in USUAL]
OCTAVES = np.log2([wavelength / GEOMETRY.original_length for wavelength in GEOMETRY.wavelengths])
"""Octaves below one rotation, for each pair."""
OPTIMA = {
    "step": SCALE ** np.interp(OCTAVES, [-3.0, 0.1, 0.6], [0.0, 0.35, 0.9]),
    "ramp": 1 / (1 - (1 - 1 / (0.6 * SCALE)) * np.interp(OCTAVES, [-4.0, 2.0], [0.0, 1.0])),
    "beyond the paper's bound": SCALE ** np.interp(OCTAVES, [-3.0, 0.0, 1.0], [0.0, 0.3, 1.35]),
    "geometric": (0.6 * SCALE) ** (np.arange(32) / 31),
}
STEP = OPTIMA["step"].tolist()


def space_of(**changes: Any) -> SearchSpace:
    return SearchSpace.build(SpaceSpec(**{"upper_bound": 8.0, "initial_tokens": [0]} | changes), GEOMETRY, TARGET)


def worth(evaluations: int, documents: int) -> BudgetSpec:
    """The tokens of so many candidates on all documents."""
    return BudgetSpec(candidates=None, tokens=100 * documents * evaluations)


@dataclass
class Watched:
    """A strategy, and what it asked for."""

    strategy: Auto
    generations: list[Generation] = field(default_factory=list)

    def ask(self) -> Generation:
        self.generations.append(self.strategy.ask())
        return self.generations[-1]

    def tell(self, results: Any) -> None:
        self.strategy.tell(results)


def run(
    objective: ManyDocuments, documents: int, budget: BudgetSpec, space: SearchSpace | None = None, seed: int = 0
) -> tuple[SearchState, list[Generation]]:
    watched = Watched(Auto(space or space_of(), SEEDS, documents, seed=seed, later=LATER))
    state = search(watched, objective, many_documents(documents), budget, error_rate=0.1)
    return state, watched.generations


def best_of(state: SearchState) -> Factors:
    assert state.best is not None
    return state.best.factors


def least_of_seeds(loss: Callable[[Factors], float], space: SearchSpace | None = None) -> float:
    space = space or space_of()
    return min(loss(space.factors(space.project(factors))) for factors in SEEDS)


@pytest.mark.parametrize(
    ("optimum", "share"), [("step", 0.2), ("ramp", 0.6), ("beyond the paper's bound", 0.3), ("geometric", 0.7)]
)
@pytest.mark.parametrize("documents", [4, 8])
def test_it_beats_the_closed_forms_in_the_tokens_of_20_evaluations(optimum: str, share: float, documents: int) -> None:
    objective = ManyDocuments(OPTIMA[optimum])
    for seed in range(2):
        state, _ = run(objective, documents, worth(20, documents), seed=seed)
        assert len(state.candidates) > 1.5 * 20
        assert objective.common(best_of(state)) < share * least_of_seeds(objective.common)


@pytest.mark.parametrize("documents", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("optimum", OPTIMA)
def test_it_never_ends_worse_than_the_best_seed(optimum: str, documents: int) -> None:
    objective = ManyDocuments(OPTIMA[optimum])
    state, _ = run(objective, documents, worth(20, documents))
    assert state.best is not None
    assert len(state.best.losses) == documents

    def on_documents(factors: Factors) -> float:
        return math.fsum(objective.document_loss(factors, document) for document in range(documents)) / documents

    assert on_documents(best_of(state)) <= least_of_seeds(on_documents)


@pytest.mark.parametrize("documents", [1, 2, 3, 4, 8, 16])
def test_generations_are_on_a_rung_or_on_all_documents(documents: int) -> None:
    state, generations = run(ManyDocuments(STEP), documents, worth(40, documents))
    asked = {generation.documents for generation in generations}
    assert asked == {*rungs(documents), None}
    assert state.ended_by == "tokens"
    assert all(contains(space_of(), factors) for factors in state.candidates)


def test_most_candidates_are_never_evaluated_on_all_documents() -> None:
    objective = ManyDocuments(STEP)
    state, _ = run(objective, 8, worth(20, 8))
    assert sum(evaluation.outcome == PRUNED for evaluation in state.candidates.values()) > len(state.candidates) / 2


def test_the_best_of_the_first_generation_continue_to_more_documents() -> None:
    objective = ManyDocuments(OPTIMA["ramp"])
    _, (first, second, *_) = run(objective, 8, worth(20, 8))
    ranked = sorted(first.candidates, key=lambda factors: objective.document_loss(factors, 0))
    assert (first.documents, second.documents) == (1, SETTINGS.profile_searches[0].documents)
    assert second.candidates == tuple(ranked[:PROMOTED])


def test_what_is_asked_for_again_is_continued() -> None:
    state, _ = run(ManyDocuments(OPTIMA["geometric"]), 8, worth(60, 8))
    documents: dict[Factors, int] = {}
    for evaluation in state.evaluations:
        assert len(evaluation.losses) > documents.get(evaluation.factors, 0)
        documents[evaluation.factors] = len(evaluation.losses)
    assert len(state.evaluations) > len(documents)


def test_the_same_seed_gives_the_same_search_and_another_one_another() -> None:
    one, same, other = (run(ManyDocuments(STEP), 4, worth(30, 4), seed=seed)[0].evaluations for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_closed_forms_that_are_not_usual_are_tried_before_cma() -> None:
    space = space_of()
    good = space.factors(space.project(FORMS["mrrope-pro"]))
    state, _ = run(ManyDocuments(list(good.rescale_factors)), 4, worth(200, 4))
    order = list(state.candidates)
    places = [order.index(space.factors(space.project(factors))) for factors in LATER]
    places = [place for place in places if place >= len(SEEDS)]  # in the space, one is the same as a usual one
    assert 40 < min(places) < max(places) <= min(places) + len(LATER)
    assert len(places) >= len(LATER) - 1
    assert len(state.candidates[good].losses) == 4, "it is seen to be good"


def test_the_first_generation_does_not_depend_on_the_seed() -> None:
    one, other = (Auto(space_of(), SEEDS, 4, seed=seed).ask() for seed in (0, 1))
    assert one == other


@pytest.mark.parametrize("documents", [1, 8])
def test_a_smaller_budget_gives_the_beginning_of_a_larger_one(documents: int) -> None:
    smaller, larger = (run(ManyDocuments(STEP), documents, worth(n, documents))[0] for n in (17, 50))
    assert smaller.evaluations == larger.evaluations[: len(smaller.evaluations)]
    assert len(larger.evaluations) > len(smaller.evaluations)


def test_a_replay_computes_nothing_anew(tmp_path: Path) -> None:
    def recorded(budget: BudgetSpec) -> tuple[SearchState, list[tuple[Factors, int]]]:
        objective = ManyDocuments(STEP, diverges=unlucky)
        with Ledger(tmp_path / "evaluations.jsonl") as ledger:
            strategy, documents = Auto(space_of(), SEEDS, 8, seed=0, later=LATER), many_documents(8)
            state = search(strategy, RecordedEvaluator(objective, ledger), documents, budget, error_rate=0.1)
        return state, objective.computed

    begun, first = recorded(worth(15, 8))
    whole, rest = recorded(worth(40, 8))
    again, nothing = recorded(worth(40, 8))
    assert nothing == []
    assert again.evaluations == whole.evaluations
    assert whole.evaluations[: len(begun.evaluations)] == begun.evaluations
    computed = [pair for pair in first + rest if not unlucky(pair[0], 3)]
    assert len(computed) == len(set(computed)), "each document of a candidate once"
    assert run(ManyDocuments(STEP, diverges=unlucky), 8, worth(40, 8))[0].candidates.keys() == whole.candidates.keys()


def unlucky(factors: Factors, document: int) -> bool:
    """One candidate in four diverges, but only on the fourth document and later ones."""
    return document >= 3 and int(factors.sha256, 16) % 4 == 0


def third(factors: Factors, document: int) -> bool:
    return int(factors.sha256, 16) % 3 == 0


@pytest.mark.parametrize("diverges", [third, unlucky])
def test_diverging_candidates_do_not_stand_in_the_way(diverges: Callable[[Factors, int], bool]) -> None:
    objective = ManyDocuments(STEP, diverges=diverges)
    state, _ = run(objective, 8, worth(40, 8))
    evaluations = state.evaluations
    failed = [evaluation.factors for evaluation in evaluations if evaluation.outcome == DIVERGED]
    assert failed
    assert len(failed) == len(set(failed)), "what failed is not asked for again"
    assert objective.common(best_of(state)) < 0.3 * least_of_seeds(objective.common)
    assert not diverges(best_of(state), 7)


def test_the_best_fail_when_they_are_continued() -> None:
    """Whatever is closer to the optimum than this diverges on the second half of the documents."""
    objective = ManyDocuments(STEP)
    near = 0.3 * least_of_seeds(objective.common)
    failing = ManyDocuments(STEP, diverges=lambda factors, document: document >= 4 and objective.common(factors) < near)
    state, _ = run(failing, 8, worth(60, 8))
    assert state.best is not None
    assert near <= objective.common(state.best.factors) < least_of_seeds(objective.common)
    asked = [evaluation.factors for evaluation in state.evaluations if evaluation.outcome == DIVERGED]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("documents", [1, 3, 8])
@pytest.mark.parametrize("failing", [{0}, {1}, {2, 3}, {0, 1, 2}, set(range(1, 40)), set(range(10**6))])
def test_generations_that_fail_altogether(documents: int, failing: set[int]) -> None:
    space = space_of(attention_factor="search", initial_tokens=[0, 4])
    strategy, objective = Auto(space, SEEDS, documents, seed=0), ManyDocuments(STEP)
    proposed: list[Factors] = []
    for number in range(60):
        generation = strategy.ask()
        if not generation.candidates:
            break
        proposed += generation.candidates
        results = []
        for factors in generation.candidates:
            losses = tuple(objective.document_loss(factors, d) for d in range(generation.documents or documents))
            results.append(Result(math.inf) if number in failing else Result(math.fsum(losses) / len(losses), losses))
        strategy.tell(results)
    assert len(set(proposed)) > 100
    assert all(contains(space, factors) for factors in proposed)


def test_the_attention_factor_is_searched_early() -> None:
    space, objective = space_of(attention_factor="search"), ManyDocuments(STEP, attention_factor=1.1)
    state, _ = run(objective, 4, worth(20, 4), space)
    assert best_of(state).attention_factor == pytest.approx(1.1, abs=0.04)
    assert objective.common(best_of(state)) < 0.3 * least_of_seeds(objective.common, space)


class Barrier(ManyDocuments):
    """No rescaling before the step is best, but half of the usual rescaling there is worse than both ends."""

    def __init__(self) -> None:
        super().__init__(np.where(OCTAVES < 0.4, 1.0, 0.9 * SCALE).tolist())

    def common(self, factors: Factors) -> float:
        height = math.log(factors.rescale_factors[int(np.argmax(OCTAVES > -0.5))]) / math.log(SCALE)
        return super().common(factors) + 0.2 * math.exp(-(((height - 0.12) / 0.06) ** 2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_before_the_step_are_scaled_down_at_once_where_small_moves_fail(seed: int) -> None:
    found = []
    for shares in ((), SETTINGS.before_step_shares):
        auto = Auto(space_of(), SEEDS, 4, seed=seed, settings=replace(SETTINGS, before_step_shares=shares))
        objective = Barrier()
        state = search(auto, objective, many_documents(4), BudgetSpec(candidates=150), error_rate=0.1)
        found.append(objective.common(best_of(state)))
    assert found[1] < 0.5 * found[0]


def test_initial_tokens_that_help_are_found() -> None:
    space, objective = space_of(initial_tokens=[0, 4, 16, 64]), ManyDocuments(STEP, initial_tokens=16)
    state, _ = run(objective, 4, worth(20, 4), space)
    assert best_of(state).initial_tokens == 16


@pytest.mark.parametrize("initial_tokens", [0, 8, 64])
def test_at_large_scales_few_numbers_of_initial_tokens_are_tried(initial_tokens: int) -> None:
    choices = [0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64]
    target = 32 * GEOMETRY.original_length
    space = SearchSpace.build(SpaceSpec(upper_bound=8.0, initial_tokens=choices), GEOMETRY, target)
    objective = ManyDocuments((np.array(STEP) * 4).tolist(), initial_tokens=initial_tokens)
    state, generations = run(objective, 8, worth(30, 8), space)
    tried = [{factors.initial_tokens for factors in one.candidates} for one in generations]
    swept = next(number for number, counts in enumerate(tried) if counts != {0})
    assert tried[swept] >= {64, 20, 4}, "every fourth"
    assert len(set().union(*tried[: swept + 6])) <= 8
    assert best_of(state).initial_tokens == initial_tokens


def test_profiles_known_with_other_initial_tokens_still_guide_the_search() -> None:
    """What the change made of the best profile is taken to happen to all."""
    space, objective = space_of(initial_tokens=[0, 16]), ManyDocuments(STEP, initial_tokens=16)
    auto, swept = Auto(space, SEEDS, 8, seed=0), False
    while not swept:
        generation = auto.ask()
        swept = any(factors.initial_tokens == 16 for factors in generation.candidates)
        assert generation.documents is not None
        losses = [
            tuple(objective.document_loss(factors, document) for document in range(generation.documents))
            for factors in generation.candidates
        ]
        auto.tell([Result(math.fsum(each) / len(each), each) for each in losses])
    best = auto._best(2)
    assert best.initial_tokens == 16
    guessed = auto._losses_like(best, 2)
    assert len(guessed) > 20
    profiles = [(guessed[shape], Factors(shape, 16, best.attention_factor)) for shape in auto._profiles]
    true = [objective.document_loss(f, 0) / 2 + objective.document_loss(f, 1) / 2 for _, f in profiles]
    assert [guess for guess, _ in profiles] == pytest.approx(true, abs=0.05)


def test_a_single_choice_of_initial_tokens_is_kept() -> None:
    state, _ = run(ManyDocuments(STEP), 4, worth(20, 4), space_of(initial_tokens=[4]))
    assert {factors.initial_tokens for factors in state.candidates} == {4}


@pytest.mark.parametrize(
    "changes",
    [
        {"monotone": False},
        {"critical_dimension": "search"},
        {"critical_dimension": 20},
        {"attention_factor": "search", "initial_tokens": [0, 4, 16], "critical_dimension": "search"},
        {"upper_bound": 1.25, "step": 0.1},
    ],
    ids=["any-order", "critical", "critical-fixed", "all", "coarse"],
)
def test_every_kind_of_space(changes: dict[str, Any]) -> None:
    space, objective = space_of(**changes), ManyDocuments(STEP)
    state, _ = run(objective, 4, worth(40, 4), space)
    assert all(contains(space, factors) for factors in state.candidates)
    assert objective.common(best_of(state)) < least_of_seeds(objective.common, space)


@settings(deadline=None, max_examples=25)
@given(
    st.builds(
        SearchSpace,
        pairs=st.just(3),
        step=st.sampled_from([0.1, 0.5]),
        top_level=st.integers(0, 3),
        monotone=st.booleans(),
        initial_tokens=st.sampled_from([(0,), (0, 1, 2)]),
        attention_factors=st.sampled_from([(1.0,), (1.0, 1.1, 1.2)]),
        rotations=st.sampled_from([(8.0, 1.0, 0.125), (900.0, 700.0, 500.0), (0.3, 0.2, 0.1)]),
        scale=st.sampled_from([1.5, 4.0]),
    ),
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
)
def test_a_tiny_space_comes_to_an_end(space: SearchSpace, documents: int, failing: int) -> None:
    """Whatever fails: one candidate in so many lives."""
    objective = ManyDocuments([1.0, 1.2, 1.4], diverges=lambda factors, _: int(factors.sha256, 16) % failing != 0)
    watched = Watched(Auto(space, [Factors.of([1.0] * 3)], documents, seed=0))
    state = search(watched, objective, many_documents(documents), BudgetSpec(candidates=10**6), error_rate=0.1)
    first = state.evaluations[: len(watched.generations[0].candidates)]
    lives = len(first) == 1 or any(evaluation.outcome != "diverged" for evaluation in first)
    assert state.ended_by == ("strategy" if lives else "diverged")
    assert all(contains(space, factors) for factors in state.candidates)
    asked = list(itertools.chain(*(generation.candidates for generation in watched.generations)))
    assert len(asked) <= len(set(asked)) * (1 + len(list(rungs(documents))))
