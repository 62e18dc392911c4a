"""Racing on the ground floor: when a candidate is stopped, what is stored of it, and what that is good for later."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.stub import StubEvaluator, samples
from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OK, OUT_OF_MEMORY, PRUNED, Evaluation
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.race import Race, rungs
from factor_search.measure.statistics import student_quantile
from factor_search.measure.stored import cut, settled
from factor_search.model.loading import load_model
from factor_search.search.loop import search
from factor_search.search.racing import Referee
from factor_search.search.strategies import Generation
from factor_search.spec import BudgetSpec, ModelSpec, parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.text.samples import Sample, SampleSet
from workers.model_worker import ModelWorker, Setting

FACTORS = Factors.of([1.0 + 0.2 * i for i in range(16)])
EIGHT = samples(documents=8).search


def evaluation(losses: list[float], total: int = 8, outcome: str = "") -> Evaluation:
    count = len(losses)
    return Evaluation(
        key="whole" if count == total else f"first {count}",
        factors=FACTORS,
        part="search",
        outcome=outcome or (OK if count == total else PRUNED),
        losses=tuple(losses),
        tokens=tuple(range(100, 100 + count)),
        losses_at={64: tuple(loss + 1 for loss in losses)},
        seconds=float(count),
    )


def test_candidates_are_stopped_after_a_power_of_two_of_documents() -> None:
    found = {total: list(rungs(total)) for total in (1, 2, 3, 5, 8, 9)}
    assert found == {1: [], 2: [1], 3: [1, 2], 5: [1, 2, 4], 8: [1, 2, 4], 9: [1, 2, 4, 8]}


def test_when_a_race_stops_a_candidate() -> None:
    planned = Race(documents=2)
    assert [planned.stops([9.0] * count, 4) for count in range(1, 5)] == [False, True, True, False]
    race = Race(documents=4, rival=(1.0, 2.0, 3.0, 4.0), margins=((1, 0.5), (2, 0.25)))
    assert not race.stops([1.5], 4)
    assert race.stops([1.51], 4)
    assert not race.stops([1.5, 2.0], 4)  # 0.25 on average
    assert race.stops([1.5, 2.01], 4)
    assert not race.stops([9.0, 9.0, 9.0], 4), "there is no margin after three"
    assert not race.stops([9.0, 9.0, 9.0, 9.0], 4), "all of them are known"


class TestSettled:
    def settled(
        self, race: Race | None, stored: Mapping[int, Evaluation]
    ) -> tuple[Evaluation | None, Evaluation | None]:
        return settled(race, stored, 8, lambda count: f"first {count}")

    def test_nothing_stored(self) -> None:
        assert self.settled(None, {}) == self.settled(Race(documents=2), {}) == (None, None)

    def test_all_documents_are_known(self) -> None:
        whole = evaluation([1.0] * 8)
        assert self.settled(None, {8: whole}) == (whole, None)
        assert self.settled(Race(documents=8), {8: whole}) == (whole, None)
        for failed in (DIVERGED, OUT_OF_MEMORY):
            failure = replace(whole, outcome=failed, losses=(), tokens=())
            assert self.settled(Race(documents=2), {8: failure}) == (failure, None)

    def test_a_longer_evaluation_is_cut_to_where_it_would_have_been_stopped(self) -> None:
        whole = evaluation([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
        outcome, _ = self.settled(Race(documents=4), {8: whole})
        assert outcome == cut(whole, 4, "first 4")
        assert outcome is not None
        assert (outcome.outcome, outcome.losses, outcome.tokens) == (PRUNED, (1.0,) * 4, (100, 101, 102, 103))
        assert outcome.losses_at == {64: (2.0,) * 4}
        assert outcome.seconds == pytest.approx(8 * sum(outcome.tokens) / sum(whole.tokens))
        assert outcome.loss == math.inf
        behind = Race(documents=8, rival=(0.5,) * 8, margins=((1, 0.6), (2, 0.4), (4, 0.2)))
        two = evaluation([1.0] * 2)
        assert self.settled(behind, {8: whole, 2: two}) == (two, None), "what was stopped there is it"
        four = cut(whole, 4, "first 4")
        assert self.settled(behind, {4: four})[0] == cut(four, 2, "first 2")

    def test_one_that_is_not_stopped_continues_from_the_longest(self) -> None:
        one, two = evaluation([1.0]), evaluation([1.0, 1.0])
        assert self.settled(Race(documents=4), {1: one, 2: two}) == (None, two)
        assert self.settled(Race(documents=8), {1: one}) == (None, one)

    def test_a_failure_on_the_way_on_leaves_what_was_before(self) -> None:
        one = evaluation([1.0])
        failure = evaluation([], outcome=OUT_OF_MEMORY)
        assert self.settled(Race(documents=1), {1: one, 8: failure}) == (one, None)
        assert self.settled(Race(documents=2), {1: one, 8: failure}) == (failure, None)


def referee(spread: float, error_rate: float, total: int, rng: np.random.Generator) -> Referee:
    """One that has seen a rival and its neighbours, whose paired differences have the given spread."""
    documents = rng.normal(3.0, 1.0, total)  # differ far more than candidates do
    judge = Referee(total, error_rate)
    judge.saw(evaluation(documents.tolist(), total))
    for n in range(12):
        judge.saw(evaluation((documents + rng.normal(0.5 + 0.1 * n, spread, total)).tolist(), total))
    return judge


@pytest.mark.parametrize("total", [4, 8, 16, 32])
@pytest.mark.parametrize("error_rate", [0.01, 0.1])
def test_one_that_would_have_won_is_seldom_stopped(total: int, error_rate: float) -> None:
    """Of candidates as good as the rival on average, those that are better than it on all documents together."""
    rng = np.random.default_rng(total)
    race = referee(0.02, error_rate, total, rng).race(None)
    assert race is not None
    wrongly, better, rightly, worse = 0, 0, 0, 0
    for _ in range(20_000):
        differences = rng.normal(0.0, 0.02, total)
        losses = (np.array(race.rival) + differences).tolist()
        stopped = any(race.stops(losses[:count], total) for count in rungs(total))
        if differences.mean() < 0:
            better, wrongly = better + 1, wrongly + stopped
        else:
            worse, rightly = worse + 1, rightly + stopped
    assert wrongly / better <= error_rate + 3 * math.sqrt(error_rate / better)
    assert rightly > 3 * wrongly, "it is worth something"


@pytest.mark.parametrize(
    ("degrees", "quantiles"),
    [(3, (1.638, 2.353, 4.541)), (7, (1.415, 1.895, 2.998)), (15, (1.341, 1.753, 2.602)), (31, (1.309, 1.696, 2.453))],
)
def test_the_quantile_of_students_t(degrees: int, quantiles: tuple[float, ...]) -> None:
    """Against the usual table."""
    for probability, expected in zip((0.9, 0.95, 0.99), quantiles, strict=True):
        assert student_quantile(probability, degrees) == pytest.approx(expected, rel=0.02)


def test_a_referee_learns_from_complete_evaluations_alone() -> None:
    judge = Referee(8, 0.01)
    assert judge.race(None) is None
    assert judge.race(2) == Race(documents=2)
    judge.saw(evaluation([0.1]))
    assert judge.best is None
    assert judge.estimate(evaluation([0.1])) == 0.1
    assert judge.race(None) == Race(documents=8), "so that what is known of a candidate is continued"
    judge.saw(evaluation([float(n) for n in range(8)]))
    assert judge.best is not None
    assert judge.estimate(evaluation([0.5, 1.5])) == pytest.approx(judge.best.loss + 0.5)


def test_a_pruned_evaluation_is_never_a_result_of_all_documents(tmp_path: Path) -> None:
    evaluator = StubEvaluator()
    with Ledger(tmp_path / "evaluations.jsonl") as ledger:
        recorded = RecordedEvaluator(evaluator, ledger)
        pruned = next(recorded.evaluate_all([FACTORS], EIGHT, Race(documents=2)))
        assert (pruned.outcome, len(pruned.losses)) == (PRUNED, 2)
        assert ledger.get(recorded.key(FACTORS, EIGHT)) is None
    with Ledger(tmp_path / "evaluations.jsonl") as ledger:
        recorded = RecordedEvaluator(evaluator, ledger)
        assert next(recorded.evaluate_all([FACTORS], EIGHT, Race(documents=2))) == pruned
        assert next(recorded.evaluate_all([FACTORS], EIGHT)) == evaluator.evaluate(FACTORS, EIGHT)
        first_two = SampleSet(EIGHT.part, EIGHT.samples[:2])
        assert next(recorded.evaluate_all([FACTORS], first_two)).outcome == OK
        assert len({recorded.key(FACTORS, EIGHT, count) for count in (1, 2, 4, None)}) == 4


class Climb:
    """One candidate on one document, on two, on all."""

    def __init__(self) -> None:
        self._documents = iter([1, 2, None])

    def ask(self) -> Generation:
        try:
            return Generation((FACTORS,), next(self._documents))
        except StopIteration:
            return Generation()

    def tell(self, results: object) -> None:
        pass


class Continuing(StubEvaluator):
    def __init__(self) -> None:
        self.known: list[int] = []

    def evaluate(
        self, factors: Factors, part: SampleSet, *, race: Race | None = None, known: Evaluation | None = None
    ) -> Evaluation:
        self.known.append(len(known.losses) if known else 0)
        return super().evaluate(factors, part, race=race, known=known)


def test_a_candidate_that_comes_again_is_continued(tmp_path: Path) -> None:
    """Also where no candidate is stopped for its losses."""
    evaluator = Continuing()
    with Ledger(tmp_path / "evaluations.jsonl") as ledger:
        state = search(Climb(), RecordedEvaluator(evaluator, ledger), EIGHT, BudgetSpec(candidates=1))
    assert evaluator.known == [0, 1, 2]
    assert [one.outcome for one in state.evaluations] == [PRUNED, PRUNED, OK]
    assert len(state.candidates) == 1
    assert state.best == state.evaluations[-1] == state.candidates[FACTORS]
    assert state.tokens == sum(state.evaluations[-1].tokens), "no document counts twice"


def test_on_a_model_a_race_gives_the_bits_of_the_whole() -> None:
    loaded = load_model(ModelSpec(id=str(CHECKPOINT)))
    factors = Factors.of([1.0 + 0.3 * i for i in range(loaded.geometry.pairs)], attention_factor=1.05)
    rng = np.random.default_rng(0)
    five = SampleSet("search", tuple(Sample(str(n), rng.integers(0, 250, 96), f"{n}") for n in range(5)))
    reported: list[float] = []
    with LocalEvaluator(loaded, 96) as evaluator:
        whole = evaluator.evaluate(factors, five)
        one = evaluator.evaluate(factors, five, race=Race(documents=1))
        two = evaluator.evaluate(factors, five, race=Race(documents=2), known=one)
        at_once = evaluator.evaluate(factors, five, race=Race(documents=2))
        rest = evaluator.evaluate(factors, five, reported.append, known=two)
    for part, count in ((one, 1), (two, 2), (at_once, 2)):
        assert (part.outcome, part.key) == (PRUNED, evaluator.key(factors, five, count))
        assert (part.losses, part.tokens) == (whole.losses[:count], whole.tokens[:count])
        assert part.losses_at == {length: losses[:count] for length, losses in whole.losses_at.items()}
    assert replace(rest, seconds=0.0) == replace(whole, seconds=0.0)
    assert reported == list(whole.losses[2:])
    assert one.seconds < two.seconds < rest.seconds


def test_a_worker_tells_the_known_losses_first() -> None:
    spec = parse_spec({"name": "n", "model": str(CHECKPOINT), "data": "d", "target_length": 256})
    setting, rng = Setting.of(spec), np.random.default_rng(0)
    three = SampleSet("search", tuple(Sample(str(n), rng.integers(0, 250, 256), f"{n}") for n in range(3)))
    worker = ModelWorker()
    worker.load(setting)
    worker.learn(three.sha256, three)
    assert worker._loaded is not None
    factors = Factors.of([1.5] * worker._loaded.geometry.pairs)
    one = worker.evaluate(setting, factors, three.sha256, race=Race(documents=1))
    assert worker.losses_so_far() == list(one.losses)
    whole = worker.evaluate(setting, factors, three.sha256, known=one)
    assert worker.losses_so_far() == list(whole.losses)
    assert len(whole.losses) == 3
