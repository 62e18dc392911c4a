import json
from pathlib import Path

import pytest

from factor_search.errors import OutputError
from factor_search.evaluation import Evaluation
from factor_search.ledger import Ledger, RecordedEvaluator
from factor_search.methods import closed_forms
from factor_search.search import SearchState, search
from factor_search.space import SearchSpace
from factor_search.spec import BudgetSpec, EvolutionSpec, SpaceSpec
from factor_search.strategies.evolution import Evolution
from tests.synthetic import SAMPLES, SyntheticEvaluator, geometry

GEOMETRY = geometry(pairs=16)
OPTIMUM = [1.0] * 6 + [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 6.0, 7.0, 7.0]


def evolution(**settings: int) -> Evolution:
    space = SearchSpace.build(SpaceSpec(attention_factor="search"), GEOMETRY, 2048)
    return Evolution(EvolutionSpec(**settings), space, list(closed_forms(GEOMETRY, 2048).values()), seed=0)


def budget(candidates: int | None = None, tokens: int | None = None, seconds: float | None = None) -> BudgetSpec:
    return BudgetSpec(candidates=candidates, tokens=tokens, seconds=seconds)


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
    assert search(strategy, SyntheticEvaluator(OPTIMUM), SAMPLES, budget(candidates=1000)).ended_by == "strategy"


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
    ledger._stream = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(OutputError, match="No space left"):
        ledger.add(SyntheticEvaluator(OPTIMUM).evaluate(evolution().ask().candidates[0], SAMPLES))
    with pytest.raises(OSError, match="No space left"):
        ledger._stream.close()
