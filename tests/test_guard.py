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
from factor_search.measure.statistics import student_quantile
from factor_search.report.document import build_report, table
from factor_search.report.front import front
from factor_search.report.page import render
from factor_search.report.results import write_results
from factor_search.search.guard import CONFIDENCE, PENALTY, SEARCH_WINDOWS, Guard, cost
from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobResult, JobWatcher, finalists, search_and_measure
from factor_search.search.short_texts import SHORT, Windows
from factor_search.spec import JobSpec, parse_spec
from factor_search.text.samples import Samples, SampleSet, sample_of
from tests.synthetic import geometry

GEOMETRY = geometry(pairs=16)
LENGTH, TARGET = 256, 1024
WANTED = np.log(np.linspace(1.0, 4.0, 16))
BASE: dict[str, Any] = {"name": "x", "model": "m", "data": "d", "target_length": TARGET}
NOISE = {
    part: np.random.default_rng(place).normal(size=6) for place, part in enumerate(("search", "validation", "held_out"))
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
        return (self.evaluate(factors, samples, race) for factors in candidates)

    def evaluate(self, factors: Factors, samples: SampleSet, race: Race | None = None) -> Evaluation:
        self.calls += 1
        logs = np.log(factors.rescale_factors)
        cost = 0.05 * float(np.mean(logs**2))
        documents = samples.samples if race is None else samples.samples[: race.documents]
        losses = []
        for sample in documents:
            part, place = sample.source.partition("@")[0].split()
            long = 2.5 + float(np.mean((logs - WANTED) ** 2))
            short = 2.0 + cost * (1 + 0.1 * float(NOISE[part][int(place)]))
            losses.append(0.1 * int(place) + (short if samples.part == SHORT else long))
        evaluation = Evaluation(
            key=self.key(factors, samples),
            factors=factors,
            part=samples.part,
            outcome="ok" if len(losses) == len(samples.samples) else "pruned",
            losses=tuple(losses),
            tokens=tuple(len(sample.tokens) - 1 for sample in documents),
            losses_at={} if samples.part == SHORT else {LENGTH: (9.0,) * len(losses), TARGET: tuple(losses)},
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


def cost_of(result: JobResult, factors: Factors | None = None) -> float:
    """On the held-out documents."""
    documents = Windows.of(result.samples.held_out, LENGTH, 1)
    one, other = (
        TwoLengths().evaluate(curve, documents.samples).losses
        for curve in (factors or result.winning_factors, Factors.of([1.0] * 16))
    )
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
        held = [one.loss for one in free.state.candidates.values() if cost_of(free, one.factors) <= 0.65 * at_most]
        allowed = 0.05 if strategy == "evolution" else 0.0  # which finds little within so few candidates
        assert guarded.held_out[guarded.winner].loss <= min(held) + allowed


def test_the_price_is_that_of_the_best_candidate_without_the_limit() -> None:
    result = searched(short_window={"at_most": 0.005})
    best = result.unlimited
    assert best is not None
    assert cost_of(result, best.factors) > 0.02
    winner = result.held_out[result.winner]
    known = [one.losses[0] for one in result.state.candidates.values()]
    assert result.state.candidates[best.factors].losses[0] == min(known) < winner.losses[0]


def test_a_candidate_without_a_finite_loss_in_short_texts_is_no_finalist() -> None:
    result = searched(short_window={"at_most": 0.02})
    state = result.state
    assert state.guard is not None
    assert result.winning_factors in finalists(state)
    state.guard.known[result.winning_factors] = ()
    assert result.winning_factors not in finalists(state)


def test_what_is_not_known_of_short_texts_is_said_so() -> None:
    result = searched(short_window={"at_most": 0.02})
    del result.short["none"]
    short = build_report(result)["short_context"]
    assert (short["at_most"], short["holds"], short["windows"]) == (0.02, None, None)
    assert "whether found holds the limit of 0.02 on short texts is not known" in table(build_report(result))


def test_a_limit_that_nothing_holds_gives_what_is_least_beyond_it() -> None:
    result = searched(short_window={"at_most": 0.0}, budget=40)
    assert result.winner != "none", "which would be no extension"
    assert cost_of(result) < 0.01


def test_the_penalty_counts_how_other_documents_may_differ() -> None:
    documents = SampleSet("search", tuple(sample_of(f"search {n}", np.arange(TARGET)) for n in range(2)))
    windows = Windows.of(documents, LENGTH, SEARCH_WINDOWS)
    one = Factors.of([1.0])
    guard = Guard(0.01, windows, deciding=4, held_out=5, reference=(2.0, 2.0), spent=(0, 0.0))
    plain = Evaluation("k", one, "search", "pruned", (3.0,), (9,), {}, 0.1)
    guard.known[one] = (2.02, 2.04)
    upper = 0.03 + student_quantile(CONFIDENCE, 3) * math.sqrt(2) * 0.01 * math.sqrt(1 / 4 + 1 / 5)
    assert guard.judged(plain).losses == pytest.approx([3.0 + PENALTY * (upper / 0.01 - 1)])
    guard.known[one] = (2.0, 2.001)
    assert guard.judged(plain) == plain
    guard.known[one] = ()
    assert guard.judged(plain).outcome == DIVERGED, "a loss in short texts was not finite"
    assert cost((2.5,), (1.5,)).upper(1, 5) == 1.0


def test_windows_lie_evenly_and_begin_with_the_prefix() -> None:
    tokens = np.concatenate([[7], np.arange(100, 1123)])
    documents = SampleSet("search", tuple(sample_of(name, tokens, prefix=1) for name in ("a", "b")))
    windows = Windows.of(documents, 200, 4)
    assert windows.each == 4, "of the five that fit"
    assert [one.source for one in windows.samples.samples[4:]] == ["b@0", "b@275", "b@549", "b@824"]
    for one in windows.samples.samples:
        start = int(one.source.split("@")[1])
        assert one.tokens.tolist() == [7, *range(100 + start, 299 + start)]
        assert one.prefix == 1
    losses = tuple(float(n) for n in range(8))
    evaluation = Evaluation("k", Factors.of([1.0]), SHORT, "ok", losses, (199,) * 8, {}, 0.1)
    assert windows.by_document(evaluation) == (1.5, 5.5)
    assert Windows.of(documents, 1024, 4).each == 1
    assert Windows.of(documents, 200, 16).each == 5


def test_a_search_counts_the_tokens_of_windows_and_measures_each_candidate_once() -> None:
    result = searched(short_window={"at_most": 0.02})
    guard = result.state.guard
    assert guard is not None
    evaluations = {one.factors: one for one in result.state.evaluations}
    assert guard.known.keys() == evaluations.keys() | {Factors.of([1.0] * 16)}
    assert {len(short) for short in guard.known.values()} == {6}, "all search documents"
    windows = len(guard.known) * 6 * SEARCH_WINDOWS * (LENGTH - 1)
    assert result.state.tokens == windows + sum(sum(one.tokens) for one in evaluations.values())
    assert max(point["short_perplexity"] for point in front(result.state, LENGTH)) < math.exp(9.0)


def test_who_holds_is_decided_by_the_mean_and_by_how_documents_differ() -> None:
    documents = SampleSet("search", tuple(sample_of(f"search {n}", np.arange(TARGET)) for n in range(2)))
    guard = Guard(0.01, Windows.of(documents, LENGTH, 1), deciding=4, held_out=4, reference=(2.0, 2.0), spent=(0, 0.0))
    short = {"holds": (2.005, 2.004, 2.004), "varies": (2.02, 1.985, 2.0), "beyond": (2.02, 2.02, 2.02)}
    assert guard.within(short, (2.0, 2.0, 2.0)) == ["holds"], "the mean of what varies is lower"
    del short["holds"]
    short["worse"] = (2.03, 2.03, 2.03)
    assert guard.within(short, (2.0, 2.0, 2.0)) == ["beyond"], "nothing holds; it is sure to cost least"


def test_an_untouched_model_without_a_loss_is_refused() -> None:
    documents = SampleSet("search", (sample_of("search 0", np.arange(TARGET)),))
    with pytest.raises(SearchFailedError, match="the untouched model gives no finite loss"):
        Guard.of(0.01, Factors.of([1.0] * 16), LENGTH, TwoLengths(diverges=True), documents, deciding=2, held_out=1)


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
    evaluator, documents = TwoLengths(), SampleSet("search", (sample_of("search 0", np.arange(TARGET)),))
    curves = [Factors.of(np.exp(share * WANTED).tolist()) for share in (1.0, 0.0, 0.5, 1.5)]
    state = SearchState()
    for factors in curves:
        evaluation = evaluator.evaluate(factors, documents)
        state.saw(replace(evaluation, losses_at={LENGTH: (2.0 + float(np.mean(np.log(factors.rescale_factors))),)}))
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
    assert short["holds"] == (short["windows"]["difference"] <= 0.001)
    assert short["windows"]["documents"] == 3
    assert "in windows of 64 tokens of the held-out documents, found costs" in table(report)
    price = short["price"]
    winner = next(row for row in report["results"] if row["name"] == "found")
    assert price["difference"] == pytest.approx(math.log(winner["held_out"] / price["perplexity"]))
    assert f"at the target length the limit costs {price['difference']:+.4f}" in table(report)
    assert report["taken"]["tokens"] == result.state.tokens + sum(
        sum(one.tokens)
        for part in (
            [*result.validation.values(), *result.held_out.values(), *result.divergence.values()],
            [*result.windows, result.unlimited],
        )
        for one in part
        if one is not None
    )
    assert len(result.windows) >= 4
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
