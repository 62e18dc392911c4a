import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from factor_search.evaluation import DIVERGED, Evaluation
from factor_search.factors import Factors
from factor_search.job import JobResult
from factor_search.methods import closed_forms
from factor_search.report import build_factors_file, build_report, table
from factor_search.report_html import render
from factor_search.samples import Sample, Samples, SampleSet
from factor_search.search import SearchState
from factor_search.spec import parse_spec
from tests.synthetic import geometry

GEOMETRY = geometry(pairs=16)
METHODS = closed_forms(GEOMETRY, 1024)
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
        spec=parse_spec({"name": "<b>&", "model": "m", "data": "d", "target_length": 1024}),
        geometry=GEOMETRY,
        samples=Samples(*names.values()),
        state=SearchState(3, evaluations, evaluations[-1], 9207, 2.25, [5, 9], "candidates"),
        methods=METHODS,
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
    assert "nothing found was better on the validation documents than yarn" in table(report)


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
