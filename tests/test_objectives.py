"""Searches for other objectives than perplexity, in one process and through the service."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna_dashboard import get_note

from factor_search.errors import DataError, SpecError
from factor_search.job import run_job
from factor_search.report.document import build_factors_file, build_report, table
from factor_search.report.page import render
from factor_search.spec import MEASURES, JobSpec, NeedleSpec, parse_spec
from storage.dashboard.address import optuna_url_beside
from storage.dashboard.projection import Projection
from storage.evaluations import EvaluationStore
from tests.processes import one_thread
from tests.service import Service
from workers.model_worker import ModelWorker


def specification(checkpoint: Path, texts: Path, **changes: Any) -> JobSpec:
    documents = {"search_documents": 3, "validation_documents": 2, "held_out_documents": 2}
    return parse_spec(
        {
            "model": {"id": str(checkpoint), "device": "cpu"},
            "data": {"files": [str(texts / "*.txt")], **documents},
            "target_length": 256,
            "objective": {"kind": "needle", "digits": 5},
            "space": {"initial_tokens": [0, 4]},
            "budget": 14,
        }
        | changes
    )


def test_a_search_for_needles_is_the_same_in_one_process_and_through_the_service(
    checkpoint: Path, texts: Path, tmp_path: Path, service: Service
) -> None:
    spec = specification(checkpoint, texts)
    with one_thread():
        alone = run_job(spec, tmp_path / "out")
    report, factors = build_report(alone), build_factors_file(alone).as_json()
    assert report["objective"]["measures"] == MEASURES["needle"] == "perplexity of answer tokens"
    assert sorted(report["objective"]["depths"]["search"]) == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    service.start(workers=2, make=lambda: ModelWorker(1))  # type: ignore[arg-type, return-value]
    job = service.jobs.submit(spec)[0].id
    assert service.wait(job) == "finished", service.jobs.get(job).error
    assert service.factors(job) == {key: value for key, value in factors.items() if key != "sha256"}
    theirs = service.jobs.document(job, "report")
    assert theirs is not None
    for key in ("results", "winner", "objective", "comparison", "factors"):
        assert theirs[key] == json.loads(json.dumps(report[key])), key
    rows = EvaluationStore(service.database).of_job(job, part="held_out_text", limit=100)
    assert len(rows) == len(report["results"])
    with Projection(service.database, optuna_url_beside(service.database.url)) as projection:
        projection.project(job)
        projection.summarise(job)
    study = optuna.load_study(study_name=None, storage=optuna_url_beside(service.database.url))
    assert study.metric_names == ["perplexity of answer tokens"]
    note = get_note(study)
    assert "Perplexity of answer tokens on held-out documents" in note


def test_figures_are_named_for_what_they_are(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    spec = specification(checkpoint, texts, strategy={"kind": "evolution"}, budget=10)
    result = run_job(spec, tmp_path / "needle")
    report = build_report(result)
    tokens = [sum(sample.scored is not None for sample in part.samples) for part in (result.samples.held_out,)]
    assert tokens == [2]
    found = report["results"][0]
    assert found["tokens"] == sum(len(sample.scored or ()) for sample in result.samples.held_out.samples) == 2 * 6
    assert found["perplexity_at"] == {}
    assert result.state.tokens == 10 * sum(len(sample.scored or ()) for sample in result.samples.search.samples)
    first, titles, *_ = table(report).splitlines()
    assert first == "perplexity of answer tokens, and perplexity of the plain text of the held-out documents"
    assert titles.split()[:7] == ["validation", "held-out", "std.", "error", "plain", "text", "std."]
    page = render(report)
    assert "Perplexity of answer tokens at 256 tokens" in page
    assert "<th>plain text</th>" in page
    assert f"{result.state.tokens} answer tokens," in page
    assert "perplexity of answer tokens on search documents" in page
    assert page.count("<svg") == 2, "a prefix has no answer, so there is nothing to plot against length"
    file = build_factors_file(result)
    assert (file.perplexity.search, file.perplexity.validation) == (None, None)
    assert file.perplexity.held_out == found["text_perplexity"] != found["held_out"]

    plain = specification(checkpoint, texts, strategy={"kind": "evolution"}, budget=10, objective="perplexity")
    other = run_job(plain, tmp_path / "plain")
    rows = {row["name"]: row for row in build_report(other)["results"]}
    for row in report["results"][1:]:
        if row["name"] in rows:
            assert row["text_perplexity"] == rows[row["name"]]["held_out"]
            assert row["text_standard_error"] == rows[row["name"]]["standard_error"]
    assert "text_perplexity" not in rows["found"]
    assert build_report(other)["objective"] == {"kind": "perplexity", "measures": "perplexity"}


def test_the_same_search_again_computes_nothing(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    spec = specification(checkpoint, texts, budget=10, objective={"kind": "needle", "digits": 3, "repeats": 2})
    result = run_job(spec, tmp_path)
    assert [len(part.samples) for part in (result.samples.search, result.samples.held_out)] == [6, 4]
    assert len({sample.sha256 for sample in result.samples.search.samples}) == 6
    before = (tmp_path / "evaluations.jsonl").read_bytes()
    first, again = (build_report(one) for one in (result, run_job(spec, tmp_path)))
    assert again["taken"].pop("continued") is not first["taken"].pop("continued")
    assert again["taken"]["tokens"] == first["taken"]["tokens"]
    for report in (first, again):
        del report["taken"], report["estimate"]
    assert again == first
    assert (tmp_path / "evaluations.jsonl").read_bytes() == before
    assert math.isfinite(build_report(result)["results"][0]["held_out"])


def test_a_target_without_room_for_a_needle_is_refused(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"100 tokens are too few .* must be at least 1\d\d"):
        run_job(specification(checkpoint, texts, target_length=100), tmp_path)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("needles", "objective"),
        ({"kind": "needle", "digits": 1}, "objective.needle.digits"),
        ({"kind": "needle", "digits": "7"}, "objective.needle.digits"),
        ({"kind": "needle", "repeats": 0}, "objective.needle.repeats"),
        ({"kind": "needle", "stride": 8}, "objective.needle.stride: unknown key"),
        ({"kind": "perplexity", "digits": 8}, "objective.perplexity.digits: unknown key"),
        ({"digits": 7}, "objective.perplexity.digits: unknown key"),
        (None, "objective"),
    ],
)
def test_objectives_that_there_are_not(objective: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec({"model": "m", "data": "d", "target_length": 256, "objective": objective})


def test_short_and_long_forms() -> None:
    document = {"model": "m", "data": "d", "target_length": 256}
    plain, default = parse_spec(document | {"objective": "perplexity"}), parse_spec(document)
    assert plain == default == parse_spec(document | {"objective": {"kind": "perplexity"}})
    needle = parse_spec(document | {"objective": "needle"})
    assert needle.objective == NeedleSpec()
    assert needle == parse_spec(document | {"objective": {"kind": "needle", "digits": 7, "repeats": 1}})
    assert parse_spec(needle.model_dump(mode="json")) == needle
    assert parse_spec(document | {"objective": {}}) == plain
    assert parse_spec(document | {"objective": {"stride": 8}}).stride == 8, "as before there were other kinds"
    assert needle.sha256 != plain.sha256
