"""Writes the results of a job into its folder: the factors file, the report and its HTML page."""

import json
from pathlib import Path
from typing import Any

from factor_search.errors import OutputError
from factor_search.factors_file import FactorsModel, MeasuredPerplexity, factors_file
from factor_search.files.atomic import write_text
from factor_search.files.canonical_json import finite
from factor_search.files.json_documents import read_json, write_json
from factor_search.report.document import build_factors_file, build_report
from factor_search.report.front import points
from factor_search.report.page import render
from factor_search.search.selection import JobResult


def write_results(result: JobResult, out: Path) -> dict[str, Any]:
    """Write ``factors.json``, ``report.json`` and ``report.html`` into a folder, and return the report.

    Where short texts have a limit, ``front`` gets a factors file for each point of the front, the best at the target
    length first.

    A partial result does not replace the finished result of an earlier, shorter search.

    Raises:
        OutputError: one of the files cannot be written.
    """
    report = _with_first_cost(build_report(result), out)
    if result.interrupted and holds_finished(out):
        return report
    build_factors_file(result).write(out / "factors.json")
    if result.problem.spec.short_window is not None:
        _write_front(result, out / "front")
    write_json(out / "report.json", report)
    write_text(out / "report.html", render(report))
    return report


def _write_front(result: JobResult, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for earlier in folder.glob("[0-9][0-9].json"):
        earlier.unlink()
    spec, geometry = result.problem.spec, result.problem.geometry
    model = FactorsModel.of(spec.model.id, spec.model.revision, geometry)
    form = result.problem.space.form
    for number, (evaluation, _) in enumerate(points(result.state, geometry.original_length), start=1):
        factors, measured = evaluation.factors, MeasuredPerplexity(search=finite(evaluation.summary.perplexity))
        numbers = None if form is None else form.as_json(factors)
        factors_file(factors, model, spec.target_length, measured, form=numbers).write(folder / f"{number:02}.json")


def _with_first_cost(report: dict[str, Any], out: Path) -> dict[str, Any]:
    """The report; run again without anything left to compute, with what it took when it was computed."""
    cost = ("estimate", "taken")
    try:
        earlier = read_json(out / "report.json", OutputError)
        known = {key: earlier[key] for key in cost}
    except (OutputError, KeyError, TypeError):
        return report
    computed = json.loads(json.dumps({key: value for key, value in report.items() if key not in cost}))
    same = all(computed.get(key) == value for key, value in earlier.items() if key not in cost)
    return report | known if same else report


def holds_finished(out: Path) -> bool:
    """Return whether a folder contains the report of a finished search."""
    try:
        return bool(read_json(out / "report.json", OutputError)["status"] == "finished")
    except (OutputError, KeyError, TypeError):
        return False
