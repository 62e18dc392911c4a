import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, PRUNED, Evaluation
from factor_search.methods import USUAL, closed_forms
from factor_search.report.document import build_factors_file, build_report, table
from factor_search.report.page import render
from factor_search.report.plots import draw_search
from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobResult
from factor_search.spec import parse_spec
from factor_search.text.samples import Sample, Samples, SampleSet
from tests.synthetic import geometry

GEOMETRY = geometry(pairs=16)
METHODS = {name: factors for name, factors in closed_forms(GEOMETRY, 1024).items() if name in USUAL}
FOUND = Factors.of([1.0 + 0.1 * i for i in range(16)])


def evaluation(factors: Factors, part: str, losses: list[float]) -> Evaluation:
    at = {length: tuple(losses) for length in (256, 512, 1024)}
    return Evaluation(factors.sha256, factors, part, "ok", tuple(losses), (1023,) * len(losses), at, 0.25)


def result(**changes: Any) -> JobResult:
    names = {
        part: SampleSet(part, (Sample(f"<{part}>", np.zeros(2, np.int64), part),))
        for part in ("search", "validation", "held_out")
    }
    candidates = METHODS | {"found-1": FOUND}
    held_out = {
        name: evaluation(factors, "held_out", [1.0 + 0.1 * n, 1.4 + 0.12 * n, 1.2 + 0.1 * n])
        for n, (name, factors) in enumerate(reversed(candidates.items()))
    }
    evaluations = [evaluation(factors, "search", [1.5]) for factors in candidates.values()]
    job = JobResult(
        problem=SearchProblem.of(
            parse_spec({"name": "<b>&", "model": "m", "data": "d", "target_length": 1024}), GEOMETRY
        ),
        methods=METHODS,
        samples=Samples(*names.values()),
        state=SearchState(
            generation=3,
            evaluations=evaluations,
            candidates={one.factors: one for one in evaluations},
            best=evaluations[-1],
            tokens=9207,
            seconds=2.25,
            generations=[5, 9],
            ended_by="candidates",
        ),
        finalists={"found-1": FOUND},
        validation=held_out,
        held_out=held_out,
        winner="found-1",
    )
    return replace(job, **changes)


def test_figures_against_numpy() -> None:
    report = build_report(result())
    found, best, *_ = report["results"]
    losses = np.array([1.0, 1.4, 1.2])
    assert found["held_out"] == pytest.approx(math.exp(losses.mean()))
    assert found["standard_error"] == pytest.approx(math.exp(losses.mean()) * losses.std(ddof=1) / math.sqrt(3))
    differences = np.array([0.1, 0.12, 0.1])
    assert best["difference"] == pytest.approx(differences.mean())
    assert best["difference_standard_error"] == pytest.approx(differences.std(ddof=1) / math.sqrt(3))
    comparison = report["comparison"]
    assert comparison["best_closed_form"] == best["name"]
    assert comparison["standard_errors"] == pytest.approx(comparison["difference"] / comparison["standard_error"])


def test_the_page_is_well_formed_self_contained_and_escaped() -> None:
    page = render(build_report(result()))
    body = page[page.index("<body>") : page.index("</body>") + 7]
    root = ElementTree.fromstring(body.replace("class=found", 'class="found"').replace("class=big", 'class="big"'))
    plots = root.findall(".//{http://www.w3.org/2000/svg}svg")
    assert len(plots) == 3
    assert all(len(plot.findall(".//{http://www.w3.org/2000/svg}path")) >= 5 for plot in plots)
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    for forbidden in ("<script", "<link", "src=", "@import"):
        assert forbidden not in page


@pytest.mark.parametrize(
    ("ended_by", "words"),
    [
        ("strategy", "no more candidates to propose"),
        ("candidates", "budget of 4,000 candidates"),
        ("tokens", "budget of 5,000 tokens"),
        ("seconds", "budget of 6.5 seconds"),
        ("no_improvement", "last 70 candidates brought no improvement"),
        ("interrupt", "interruption"),
    ],
)
def test_what_ended_the_search_is_told_in_words(ended_by: str, words: str) -> None:
    job = result()
    job.state.ended_by = ended_by
    budget = {"candidates": 4000, "tokens": 5000, "seconds": 6.5, "no_improvement": 70}
    spec = parse_spec({"model": "m", "data": "d", "target_length": 1024, "budget": budget})
    report = build_report(replace(job, problem=replace(job.problem, spec=spec)))
    assert report["search"]["ended_by"] == ended_by
    for shown in (table(report), render(report)):
        assert words in shown


def test_the_page_says_where_the_search_started() -> None:
    known = {"source": "<stage 1>", "rescale_factors": [1.0] * 16}
    warm_start = {"factors": [known], "rescale_factors": [[1.0] * 16]}
    spec = parse_spec({"model": "m", "data": "d", "target_length": 1024, "warm_start": warm_start})
    job = result()
    page = render(build_report(replace(job, problem=replace(job.problem, spec=spec))))
    assert "the closed forms and <code>&lt;stage 1&gt;</code>, 1 given vector." in page


def test_a_partial_result_is_a_valid_report() -> None:
    partial = result(winner="", validation={}, held_out={}, finalists={}, interrupted=True)
    report = build_report(partial)
    assert report["status"] == "interrupted"
    assert report["results"] == []
    assert "partial result" in render(report)
    assert "interrupted after 9 candidates" in table(report)
    file = build_factors_file(partial)
    assert file.perplexity.held_out is None
    assert file.perplexity.search == pytest.approx(math.exp(1.5))


def test_a_closed_form_that_wins_is_named() -> None:
    report = build_report(result(winner="yarn"))
    assert report["results"][0]["is"] == "yarn"
    assert "no candidate was better than yarn on the validation documents: it is reported" in table(report)


def test_a_diverged_closed_form_is_shown_as_such() -> None:
    job = result()
    job.held_out["pi"] = replace(job.held_out["pi"], outcome=DIVERGED, losses=(), tokens=(), losses_at={})
    report = build_report(job)
    row = next(row for row in report["results"] if row["name"] == "pi")
    assert (row["held_out"], row["difference"], row["outcome"]) == (None, None, "diverged")
    assert render(report)
    assert table(report)
    assert "pi" not in build_factors_file(job).perplexity.held_out_baselines


def test_a_single_held_out_document_has_no_standard_error() -> None:
    job = result()
    one = {name: replace(e, losses=e.losses[:1], tokens=e.tokens[:1]) for name, e in job.held_out.items()}
    report = build_report(replace(job, held_out=one))
    assert report["results"][0]["standard_error"] is None
    assert report["comparison"]["standard_errors"] is None
    assert render(report)
    assert table(report)


def racing(*searched: tuple[float, ...]) -> JobResult:
    """Candidates evaluated on so many of two search documents."""
    documents = tuple(Sample(str(n), np.zeros(2, np.int64), str(n)) for n in range(2))
    job = result()
    evaluations = [
        replace(evaluation(factors, "search", list(losses)), outcome="ok" if len(losses) == 2 else PRUNED)
        for factors, losses in zip(job.candidates.values(), searched, strict=False)
    ]
    best = min(evaluations, key=lambda one: (-len(one.losses), one.summary.loss))
    latest = {one.factors: one for one in evaluations}
    state = replace(job.state, evaluations=evaluations, candidates=latest, best=best, generations=[2, 4])
    return replace(job, samples=replace(job.samples, search=SampleSet("search", documents)), state=state)


def test_what_was_stopped_early_is_told_from_what_was_not() -> None:
    report = build_report(racing((1.0,), (2.0, 1.5), (0.5,), (1.5, 1.5), (2.0, 2.0)))
    axes = Figure().add_subplot()
    draw_search(axes, report)
    early, complete = axes.collections
    assert [tuple(point) for point in early.get_offsets()] == [(1, math.exp(1.0)), (3, math.exp(0.5))]
    assert not len(early.get_facecolor()), "open marks"
    assert [point[0] for point in complete.get_offsets()] == [2, 4, 5]
    (best,) = axes.get_lines()[:1]
    assert list(best.get_xdata()) == [2, 4, 5]
    assert list(best.get_ydata()) == pytest.approx([math.exp(1.75), math.exp(1.5), math.exp(1.5)])
    page = render(report)
    assert "5 candidates in 5 evaluations, 2 of them stopped before the last document" in page
    assert "Open marks were stopped early" in page
    assert "stopped" not in render(build_report(result()))


def test_while_nothing_is_complete_there_is_no_best_so_far() -> None:
    report = build_report(racing((1.0,), (0.5,), (1.5,)))
    axes = Figure().add_subplot()
    draw_search(axes, report)
    assert axes.get_legend_handles_labels()[1] == ["stopped early"]
    interrupted = racing((1.0,), (0.5,), (1.5,))
    interrupted = replace(interrupted, winner="", validation={}, held_out={}, finalists={}, interrupted=True)
    assert "best so far 1.6487 on 1 search document" in table(build_report(interrupted))
    assert build_factors_file(interrupted).perplexity.search is None, "that is for all search documents"


def test_a_report_from_before_there_were_races_is_shown() -> None:
    report = build_report(result())
    for name in ("documents", "evaluations", "pruned", "best_documents"):
        del report["search"][name]
    assert render(report) == render(build_report(result()))


def test_short_context_degradation_is_the_paired_difference_at_the_original_length() -> None:
    job = result()
    found, untouched = [1.0, 1.4, 1.2], [0.9, 1.5, 1.0]
    for name, losses in (("found-1", found), ("none", untouched)):
        one = job.held_out[name]
        job.held_out[name] = replace(one, losses_at=one.losses_at | {256: tuple(losses)})
    short = build_report(job)["short_context"]
    differences = np.array(found) - np.array(untouched)
    assert (short["length"], short["untouched"]) == (256, "none")
    assert short["difference"] == pytest.approx(differences.mean())
    assert short["difference_standard_error"] == pytest.approx(differences.std(ddof=1) / math.sqrt(3))
    assert short["untouched_perplexity"] == pytest.approx(math.exp(np.mean(untouched)))


def test_without_the_untouched_model_there_is_no_short_context_degradation() -> None:
    job = result()
    job.held_out["none"] = replace(job.held_out["none"], losses_at={})
    assert build_report(job)["short_context"] is None
    others = {name: factors for name, factors in METHODS.items() if name != "none"}
    assert build_report(replace(job, methods=others))["short_context"] is None
    partial = result(winner="", validation={}, held_out={}, finalists={}, interrupted=True)
    assert build_report(partial)["short_context"] is None


def test_documents_and_model_are_named_by_hashes() -> None:
    report = build_report(result(identity={"model": "abc", "dtype": "float32"}))
    assert report["measured_on"] == [{"source": "<held_out>", "sha256": "held_out", "tokens": 2}]
    assert report["measured_with"] == {"model": "abc", "dtype": "float32"}
    assert build_report(result())["measured_with"] is None


def test_a_search_that_compares_with_few_closed_forms_has_its_plots() -> None:
    job = result()
    few = replace(job, methods={"yarn": METHODS["yarn"]}, winner="yarn")
    few.held_out = {"yarn": job.held_out["yarn"]}
    page = render(build_report(few))
    assert "yarn" in page
    assert page.count("<svg") == 3


def test_the_usual_closed_forms_and_the_two_best_of_the_others_are_compared_with() -> None:
    others = {name: one for name, one in closed_forms(GEOMETRY, 1024).items() if name not in USUAL}
    problem = result().problem
    assert (set(problem.methods), set(problem.others)) == (set(METHODS), set(others))
    assert problem.forms_compared == len(METHODS) + 2
    assert (len(problem.seeds), set(problem.later_seeds)) == (len(METHODS), set(others.values()))
    assert max(problem.space.rotations) < 64
    losses = {"mrrope-pro": [1.0, 9.0], "soft-clip": [3.0], "ntk-fixed": [1.5], "ntk-mixed": []}
    known = {}
    for name, values in losses.items():  # a race stopped some of them, and the space has only what is near
        nearest = problem.space.factors(problem.space.project(others[name]))
        known[nearest] = evaluation(nearest, "search", values)
    assert list(problem.best_others(known)) == ["mrrope-pro", "ntk-fixed"]
    assert problem.best_others({}) == {}
    small = parse_spec({"name": "x", "model": "m", "data": "d", "target_length": 1024, "strategy": "evolution"})
    for population, more in ((64, len(others)), (24, 12 - len(METHODS)), (12, 0)):
        strategy = small.strategy.model_copy(update={"population": population})
        assert len(SearchProblem.of(small.model_copy(update={"strategy": strategy}), GEOMETRY).later_seeds) == more


def test_a_search_of_a_pretrained_model_begins_with_the_form_for_such_models() -> None:
    long = replace(GEOMETRY, original_length=8192)
    spec = parse_spec({"name": "x", "model": "m", "data": "d", "target_length": 32_768})
    problem = SearchProblem.of(spec, long)
    assert max(problem.space.rotations) > 64
    raised = closed_forms(long, 32_768)["raised-base"]
    assert (problem.seeds[0], raised in problem.later_seeds) == (raised, False)
    before = SearchProblem.of(spec, long, forms=["yarn", "rotation-step"])  # begun by an earlier version
    assert raised not in (*before.seeds, *before.later_seeds)
