"""Writes the results of a job into its folder: the factors file, the report and its HTML page."""

from pathlib import Path
from typing import Any

from factor_search.errors import OutputError
from factor_search.files.atomic import write_text
from factor_search.files.json_documents import read_json, write_json
from factor_search.report.document import build_factors_file, build_report
from factor_search.report.page import render
from factor_search.search.selection import JobResult


def write_results(result: JobResult, out: Path) -> dict[str, Any]:
    """Write ``factors.json``, ``report.json`` and ``report.html`` into a folder, and return the report.

    A partial result does not replace the finished result of an earlier, shorter search.

    Raises:
        OutputError: one of the files cannot be written.
    """
    report = build_report(result)
    if result.interrupted and holds_finished(out):
        return report
    build_factors_file(result).write(out / "factors.json")
    write_json(out / "report.json", report)
    write_text(out / "report.html", render(report))
    return report


def holds_finished(out: Path) -> bool:
    """Return whether a folder contains the report of a finished search."""
    try:
        return bool(read_json(out / "report.json", OutputError)["status"] == "finished")
    except (OutputError, KeyError, TypeError):
        return False
