"""A limit on short texts, and the front of long and short ones."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factor_search.errors import SearchFailedError, SpecError
from factor_search.factors import Factors
from factor_search.factors_file import read_factors
from factor_search.job import run_job
from factor_search.measure.evaluation import DIVERGED, Evaluation
from factor_search.measure.race import Race
from factor_search.report.document import table
from factor_search.report.front import front
from factor_search.report.page import render
from factor_search.report.results import write_results
from factor_search.search.guard import PART, PENALTY, Guard
from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobResult, JobWatcher, search_and_measure
from factor_search.spec import JobSpec, parse_spec
from factor_search.text.samples import Samples, SampleSet, sample_of
from tests.synthetic import geometry

GEOMETRY = geometry(pairs=16)
LENGTH, TARGET = 256, 1024
WANTED = np.log(np.linspace(1.0, 4.0, 16))
BASE: dict[str, Any] = {"name": "x", "model": "m", "data": "d", "target_length": TARGET}
NOISE = {
    part: np.random.default_rng(place).normal(size=6) for place, part in enumerate(("search", "validation", "held"))
}


class TwoLengths:
    """Long texts want one curve, short ones no rescaling at all; documents differ a little in what it costs them."""

    def __init__(self, diverges: bool = False) -> None:
        self.diverges, self.calls = diverges, 0

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        return f"{factors.sha256} {samples.part} {documents}"

    earlier_key = key

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        return (self.evaluate(factors, samples) for factors in candidates)

    def evaluate(self, factors: Factors, samples: SampleSet) -> Evaluation:
        self.calls += 1
        logs = np.log(factors.rescale_factors)
        noise = NOISE[{"search": "search", PART: "search", "validation": "validation"}.get(samples.part, "held")]
        cost = 0.05 * float(np.mean(logs**2))
        short = [2.0 + 0.1 * place + cost * (1 + 0.1 * float(noise[place])) for place in range(len(samples.samples))]
        long = [2.5 + 0.1 * place + float(np.mean((logs - WANTED) ** 2)) for place in range(len(short))]
        losses = tuple(short if samples.part == PART else long)
        evaluation = Evaluation(
            key=self.key(factors, samples),
            factors=factors,
            part=samples.part,
            outcome="ok",
            losses=losses,
            tokens=(TARGET - 1,) * len(losses),
            losses_at={LENGTH: tuple(short), TARGET: losses},
            seconds=0.1,
        )
        return (
            replace(evaluation, outcome=DIVERGED, losses=(), tokens=(), losses_at={}) if self.diverges else evaluation
        )


def searched(**changes: Any) -> JobResult:
    spec = parse_spec(BASE | {"budget": 120, "space": {"initial_tokens": [0]}} | changes)
    parts = (
        SampleSet(part, tuple(sample_of(f"{part} {n}", np.arange(TARGET)) for n in range(6)))
        for part in ("search", "validation", "held_out")
    )
    problem = SearchProblem.of(spec, GEOMETRY)
    return search_and_measure(problem, Samples(*parts), TwoLengths(), JobWatcher())


def cost_of(result: JobResult) -> float:
    held_out = result.held_out
    one, other = (held_out[name].losses_at[LENGTH] for name in (result.winner, "none"))
    return math.fsum(a - b for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.parametrize(
    ("strategy", "limits"), [("auto", (0.02, 0.005)), ("cma", (0.02, 0.005)), ("evolution", (0.02,))]
)
def test_the_winner_holds_the_limit_and_is_better_than_what_holds_it_otherwise(
    strategy: str, limits: tuple[float, ...]
) -> None:
    free = searched(strategy=strategy)
    assert cost_of(free) > 0.03
    for at_most in limits:
        guarded = searched(strategy=strategy, short_window={"at_most": at_most})
        assert 0.4 * at_most < cost_of(guarded) <= at_most
        untouched = math.fsum(2.0 + 0.1 * n for n in range(6))
        held = [
            evaluation.loss
            for evaluation in free.state.candidates.values()
            if math.fsum(evaluation.losses_at[LENGTH]) - untouched <= 6 * 0.65 * at_most
        ]
        assert guarded.held_out[guarded.winner].loss <= min(held)


def test_a_limit_that_nothing_holds_gives_what_is_least_beyond_it() -> None:
    result = searched(short_window={"at_most": 0.0}, budget=40)
    assert result.winner != "none", "which would be no extension"
    assert cost_of(result) < 0.01


def test_the_penalty_counts_the_standard_error_and_only_the_documents_known() -> None:
    guard = Guard(LENGTH, 0.01, (2.0, 2.0, 2.0))
    plain = Evaluation("k", Factors.of([1.0]), "search", "ok", (3.0, 3.0), (9, 9), {LENGTH: (2.02, 2.04)}, 0.1)
    error = math.sqrt(0.01**2)
    judged = guard.judged(plain)
    assert judged.losses == pytest.approx([3.0 + PENALTY * (0.03 + error - 0.01)] * 2)
    assert guard.judged(replace(plain, losses_at={LENGTH: (2.0, 2.001)})).losses == plain.losses
    assert guard.judged(replace(plain, losses_at={})).losses == plain.losses
    alone = replace(plain, losses=(3.0,), tokens=(9,), losses_at={LENGTH: (2.02,)})
    assert guard.judged(alone).losses == pytest.approx([3.0 + PENALTY * 0.01])


def test_an_untouched_model_without_a_loss_is_refused() -> None:
    documents = SampleSet("search", (sample_of("a", np.arange(TARGET)),))
    with pytest.raises(SearchFailedError, match="the untouched model gives no finite loss"):
        Guard.of(0.01, Factors.of([1.0] * 16), LENGTH, TwoLengths(diverges=True), documents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_window": {"at_most": -1}}, "short_window.at_most"),
        ({"short_window": {}}, "short_window.at_most"),
        ({"short_window": {"at_most": 0.01}, "objective": "needle"}, "goes with the perplexity of first windows"),
        (
            {"short_window": {"at_most": 0.01}, "objective": {"kind": "perplexity", "stride": 64}},
            "goes with the perplexity of first windows",
        ),
    ],
)
def test_what_a_limit_does_not_go_with(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(BASE | changes)


def test_a_limit_needs_a_longer_target_and_is_part_of_the_search() -> None:
    spec = parse_spec(BASE | {"short_window": {"at_most": 0.01}})
    assert spec.sha256 != parse_spec(BASE).sha256
    scaled = {"target_length": 256, "space": {"scale": 2.0}}
    with pytest.raises(SpecError, match="the target length must be above the original one"):
        SearchProblem.of(parse_spec(BASE | scaled | {"short_window": {"at_most": 0.01}}), GEOMETRY)
    assert "none" in SearchProblem.of(spec.model_copy(update={"baselines": ["yarn"]}), GEOMETRY).methods


def test_the_front_is_what_none_beats_at_both() -> None:
    evaluator, documents = TwoLengths(), SampleSet("search", (sample_of("a", np.arange(TARGET)),))
    curves = [Factors.of(np.exp(share * WANTED).tolist()) for share in (1.0, 0.0, 0.5, 1.5)]
    state = SearchState()
    for factors in curves:
        state.saw(evaluator.evaluate(factors, documents))
    found = front(state, LENGTH)
    assert [point["factors"] for point in found] == [curves[place].as_json() for place in (0, 2, 1)]
    assert [point["perplexity"] for point in found] == sorted(point["perplexity"] for point in found)
    assert front(SearchState(), LENGTH) == front(state, 300) == []


@pytest.fixture
def spec(checkpoint: Path, texts: Path) -> Callable[..., JobSpec]:
    data = {"files": [str(texts / "*.txt")], "search_documents": 3, "validation_documents": 2, "held_out_documents": 3}
    base = {"model": str(checkpoint), "data": data, "target_length": 256, "budget": 40}
    return lambda **changes: parse_spec(base | {"space": {"initial_tokens": [0]}} | changes)


def test_a_job_with_a_limit_says_whether_it_holds(spec: Callable[..., JobSpec], tmp_path: Path) -> None:
    result = run_job(spec(short_window={"at_most": 0.001}, baselines=["yarn"]), tmp_path / "out")
    report = write_results(result, tmp_path / "out")
    short = report["short_context"]
    assert short["at_most"] == 0.001
    assert short["holds"] == (short["difference"] <= 0.001)
    said = "within the limit of 0.001" if short["holds"] else "BEYOND the limit of 0.001"
    assert said in table(report)
    assert said in render(report)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["front"] == report["front"]
    files = sorted((tmp_path / "out" / "front").iterdir())
    assert len(files) == len(report["front"]) >= 1
    assert read_factors(files[0]).factors.as_json() == report["front"][0]["factors"]
    again = run_job(spec(short_window={"at_most": 0.001}, baselines=["yarn"]), tmp_path / "out")
    assert again.continued
    assert again.winning_factors == result.winning_factors
