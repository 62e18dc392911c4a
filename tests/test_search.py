import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factor_search.errors import OutputError
from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.race import Race
from factor_search.methods import closed_forms
from factor_search.search.loop import SearchState, _stagnant, search
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Generation, Result
from factor_search.search.strategies.evolution import Evolution
from factor_search.spec import BudgetSpec, EvolutionSpec, SpaceSpec
from factor_search.text.samples import SampleSet
from tests.synthetic import SAMPLES, SyntheticEvaluator, geometry

GEOMETRY = geometry(pairs=16)
OPTIMUM = [1.0] * 6 + [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 6.0, 7.0, 7.0]


def evolution(**settings: int) -> Evolution:
    space = SearchSpace.build(SpaceSpec(attention_factor="search"), GEOMETRY, 2048)
    return Evolution(EvolutionSpec(**settings), space, list(closed_forms(GEOMETRY, 2048).values()), seed=0)


def budget(candidates: int | None = None, **limits: Any) -> BudgetSpec:
    return BudgetSpec(candidates=candidates, **limits)


def test_finds_its_way_to_a_known_optimum() -> None:
    evaluator = SyntheticEvaluator(OPTIMUM)
    closed = min(evaluator.evaluate(factors, SAMPLES).loss for factors in closed_forms(GEOMETRY, 2048).values())
    state = search(evolution(), evaluator, SAMPLES, budget(candidates=1344))
    assert state.best is not None
    assert state.ended_by == "candidates"
    assert state.best.loss - 1 < 0.2 * (closed - 1)
    assert state.best.factors.initial_tokens == 0


@pytest.mark.parametrize(
    ("limits", "ended_by", "count"),
    [
        ({"candidates": 37}, "candidates", 37),
        ({"tokens": 1000}, "tokens", 10),
        ({"seconds": 4.9}, "seconds", 10),
        ({"candidates": 50, "tokens": 1000}, "tokens", 10),
    ],
)
def test_every_budget_ends_the_search_exactly(limits: dict[str, int], ended_by: str, count: int) -> None:
    state = search(evolution(), SyntheticEvaluator(OPTIMUM), SAMPLES, budget(**limits))
    assert (state.ended_by, len(state.evaluations)) == (ended_by, count)


def test_a_strategy_may_end_first() -> None:
    strategy = evolution(population=16, parents=4, mutants=3, crossovers=3, generations=2)
    limits = budget(candidates=1000, tokens=10**9, seconds=1e9, no_improvement=1000)
    assert search(strategy, SyntheticEvaluator(OPTIMUM), SAMPLES, limits).ended_by == "strategy"


class Scripted:
    """Proposes what it was given; ends then."""

    def __init__(self, *generations: list[Factors], repeat: bool = False) -> None:
        self._left = list(generations)
        self._repeat = repeat

    def ask(self) -> Generation:
        if not self._left:
            return Generation()
        return Generation(tuple(self._left[0] if self._repeat else self._left.pop(0)))

    def tell(self, results: Sequence[Result]) -> None:
        pass


class Prescribed:
    """Losses on each document as they were given, in the order of candidates; empty for one that diverges."""

    def __init__(self, losses: Mapping[Factors, Sequence[float]]) -> None:
        self._losses = losses

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        return factors.sha256

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        for factors in candidates:
            losses = tuple(self._losses[factors])
            outcome = "ok" if losses else "diverged"
            yield Evaluation(factors.sha256, factors, "search", outcome, losses, (100,) * len(losses), {}, 0.5)


def numbered(count: int) -> list[Factors]:
    return [Factors.of([1.0 + n] * 4) for n in range(count)]


def one_at_a_time(losses: Sequence[Sequence[float]], no_improvement: int) -> SearchState:
    """A search with a candidate in each generation, whose losses are given."""
    candidates = numbered(len(losses))
    documents = max(len(one) for one in losses)
    samples = SampleSet("search", SAMPLES.samples * documents)
    evaluator = Prescribed(dict(zip(candidates, losses, strict=True)))
    return search(Scripted(*([one] for one in candidates)), evaluator, samples, budget(no_improvement=no_improvement))


@pytest.mark.parametrize(
    ("losses", "window", "ended_by", "count"),
    [
        # one document: any improvement counts, however small
        ([[5.0], [4.0], [4.5], [4.5], [3.0]], 3, "strategy", 5),
        ([[5.0], [4.0], [4.5], [4.5], [4.5], [3.0]], 3, "no_improvement", 5),
        ([[5.0 - 1e-9 * n] for n in range(9)], 2, "strategy", 9),
        # several: it must stand out from the error of the paired difference, here 1/3 and its error of 2/3 ...
        ([[5.0, 5.0, 5.0], [6.0, 4.0, 4.0], [9.0, 9.0, 9.0]], 1, "no_improvement", 2),
        # ... while the same gain on every document does, though documents differ far more
        ([[5.0, 50.0, 9.0], [4.9, 49.9, 8.9], [4.8, 49.8, 8.8]], 1, "strategy", 3),
        # many steps that are each within the noise are together not
        ([[5.0 - 0.1 * n, 5.0 - 0.3 * (n >= 3)] for n in range(4)], 3, "strategy", 4),
        # from nothing to something is an improvement, from nothing to nothing is none
        ([[], [5.0], [4.0]], 1, "strategy", 3),
        ([[], [], [5.0]], 1, "no_improvement", 2),
    ],
)
def test_no_improvement_ends_the_search(losses: list[list[float]], window: int, ended_by: str, count: int) -> None:
    state = one_at_a_time(losses, window)
    assert (state.ended_by, len(state.candidates)) == (ended_by, count)


def test_no_improvement_is_looked_for_at_the_end_of_generations_only() -> None:
    candidates = numbered(8)
    evaluator = Prescribed({factors: [1.0 + n] for n, factors in enumerate(candidates)})
    for size in (3, 4, 8):
        generations = [candidates[start : start + size] for start in range(0, 8, size)]
        state = search(Scripted(*generations), evaluator, SAMPLES, budget(no_improvement=3))
        assert (state.ended_by, len(state.candidates)) == ("no_improvement", {3: 6, 4: 4, 8: 8}[size])


def test_a_best_that_is_evaluated_on_more_documents_has_not_improved() -> None:
    first, second = numbered(2)
    state = SearchState()
    tokens = (100, 100, 100)
    for factors, losses in ((first, (5.0,)), (first, (5.0, 4.0, 3.0)), (second, (9.0,))):
        outcome = "ok" if len(losses) == 3 else "pruned"
        state.saw(Evaluation("", factors, "search", outcome, losses, tokens[: len(losses)], {}, 1.0))
    assert _stagnant(budget(no_improvement=1), state) == "no_improvement"
    assert _stagnant(budget(no_improvement=2), state) == "", "there was none two candidates ago"


@pytest.mark.parametrize(
    ("limits", "ended_by"), [({"no_improvement": 40}, "no_improvement"), ({"seconds": 50.2}, "seconds")]
)
def test_a_search_ends_at_the_same_candidate_when_it_is_run_again(
    limits: dict[str, Any], ended_by: str, tmp_path: Path
) -> None:
    whole = search(evolution(), SyntheticEvaluator(OPTIMUM), SAMPLES, budget(**limits))
    assert whole.ended_by == ended_by
    for stop_at in (7, 80, 10**9):
        with Ledger(tmp_path / "evaluations.jsonl") as ledger:
            evaluator = RecordedEvaluator(SyntheticEvaluator(OPTIMUM, stop_at=stop_at), ledger)
            again = search(evolution(), evaluator, SAMPLES, budget(**limits))
    assert (again.ended_by, results(again)) == (ended_by, results(whole))


def test_a_budget_must_have_an_end() -> None:
    with pytest.raises(ValidationError, match="at least one of"):
        BudgetSpec(candidates=None)


def test_candidates_are_counted_once() -> None:
    a, b, c, d = numbered(4)
    evaluator = Prescribed({factors: [1.0] for factors in (a, b, c, d)})
    state = search(Scripted([a, b], [b, a, c], [a, d]), evaluator, SAMPLES, budget(candidates=3))
    assert [evaluation.factors for evaluation in state.evaluations] == [a, b, b, a, c, a]
    assert (state.ended_by, len(state.candidates), state.tokens, state.seconds) == ("candidates", 3, 300, 1.5)


def test_a_strategy_that_repeats_itself_ends_with_the_budget() -> None:
    a, b, c = numbered(3)
    evaluator = Prescribed({factors: [1.0] for factors in (a, b, c)})
    state = search(Scripted([a, b, c], repeat=True), evaluator, SAMPLES, budget(candidates=2))
    assert (state.ended_by, len(state.candidates)) == ("candidates", 2)


@pytest.mark.parametrize("limits", [{"tokens": 950}, {"tokens": 901}, {"seconds": 4.6}, {"seconds": 5.0}])
def test_budgets_of_tokens_and_seconds_are_passed_by_less_than_one_evaluation(limits: dict[str, float]) -> None:
    state = search(evolution(), SyntheticEvaluator(OPTIMUM), SAMPLES, budget(**limits))
    for name, spent, each in (("tokens", state.tokens, 100), ("seconds", state.seconds, 0.5)):
        if name in limits:
            assert state.ended_by == name
            assert 0 <= spent - limits[name] < each


def test_a_diverged_candidate_is_an_outcome_and_never_the_best() -> None:
    diverging = frozenset(range(1, 40, 3))
    state = search(evolution(), SyntheticEvaluator(OPTIMUM, diverging), SAMPLES, budget(candidates=200))
    assert [n for n, e in enumerate(state.evaluations, start=1) if e.outcome == "diverged"] == sorted(diverging)
    assert state.best is not None
    assert state.best.outcome == "ok"


def results(state: SearchState) -> list[tuple[object, float]]:
    return [(evaluation.factors, evaluation.loss) for evaluation in state.evaluations]


@pytest.mark.parametrize("stop_at", [1, 30, 63, 64, 65, 100])
def test_an_interrupted_search_continues_as_if_undisturbed(tmp_path: Path, stop_at: int) -> None:
    whole = search(evolution(), SyntheticEvaluator(OPTIMUM), SAMPLES, budget(candidates=120))
    file = tmp_path / "evaluations.jsonl"
    with Ledger(file) as ledger:
        evaluator = RecordedEvaluator(SyntheticEvaluator(OPTIMUM, stop_at=stop_at), ledger)
        state = search(evolution(), evaluator, SAMPLES, budget(candidates=120))
    assert (state.ended_by, len(state.evaluations)) == ("interrupt", stop_at)
    with file.open("ab") as stream:
        stream.write(b'{"key": "torn by a kill')
    rest = SyntheticEvaluator(OPTIMUM)
    with Ledger(file) as ledger:
        again = search(evolution(), RecordedEvaluator(rest, ledger), SAMPLES, budget(candidates=120))
    assert results(again) == results(whole)
    assert len(rest.calls) == 120 - stop_at, "nothing is evaluated twice"
    with Ledger(file) as ledger:
        assert len(ledger) == 120, "the torn line has not spoilt the next one"


def test_an_evaluation_survives_its_line_exactly() -> None:
    evaluation = SyntheticEvaluator(OPTIMUM).evaluate(evolution().ask().candidates[3], SAMPLES)
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.as_json()))) == evaluation


def test_a_damaged_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    for damage in (b"not json\n", b"[]\n", b'{"key": 1}\n', b"\xff\n"):
        file.write_bytes(damage)
        with pytest.raises(OutputError, match="line 1 is not an evaluation"):
            Ledger(file)
        assert file.read_bytes() == damage


def test_two_processes_do_not_share_a_ledger(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    with Ledger(file), pytest.raises(OutputError, match="another process"):
        Ledger(file)


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    file = tmp_path / "evaluations.jsonl"
    ledger = Ledger(file)
    ledger._stream.close()
    ledger._stream = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with pytest.raises(OutputError, match="No space left"):
        ledger.add(SyntheticEvaluator(OPTIMUM).evaluate(evolution().ask().candidates[0], SAMPLES))
    ledger._stream.close()
