"""Reads the folder of a search that is to be published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from factor_search.errors import OutputError
from factor_search.factors_file import FactorsFile, read_factors
from factor_search.files.json_documents import explain, read_json
from factor_search.report.document import SCHEMA
from factor_search.spec import JobSpec, parse_spec

AGAIN = "run the same command again, which takes the stored evaluations and writes the report anew"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Row(_Part):
    """The winner or a closed form on the held-out documents."""

    name: str
    held_out: float | None
    standard_error: float | None
    difference: float | None
    difference_standard_error: float | None
    documents: int
    tokens: int
    text_perplexity: float | None = None
    text_standard_error: float | None = None


class HeldOut(_Part):
    """The plain text of a held-out sample."""

    source: str
    sha256: str
    """Of its tokens."""
    tokens: int


class ShortContext(_Part):
    """The winner against the untouched model within the original length."""

    length: int
    untouched: str
    perplexity: float | None
    untouched_perplexity: float | None
    difference: float
    difference_standard_error: float | None
    at_most: float | None = None
    holds: bool | None = None


class Ended(_Part):
    """How much was searched."""

    candidates: int
    tokens: int


class Report(_Part):
    """What is published of ``report.json``."""

    status: str
    spec: dict[str, Any]
    measured_on: list[HeldOut]
    measured_with: dict[str, str]
    search: Ended
    winner: str
    results: list[Row]
    short_context: ShortContext | None
    closed_forms: dict[str, dict[str, Any]]
    versions: dict[str, str]


@dataclass(frozen=True)
class Results:
    """The results of a finished search."""

    factors: FactorsFile
    report: Report
    plotted: dict[str, Any]
    """``report.json`` as it is, for its plots."""
    spec: JobSpec


def read_results(folder: Path) -> Results:
    """Read ``factors.json`` and ``report.json``.

    Raises:
        FactorsError: the factors are not valid.
        OutputError: there is no report of a finished search, it is of an earlier version, or it is damaged.
        SpecError: its specification is not valid.
    """
    factors, file = read_factors(folder / "factors.json"), folder / "report.json"
    content = read_json(file, OutputError, own=True)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise OutputError(
            f"{file} is not the report of a search: publish the folder of a search; of a plan, that of its search stage"
        )
    if content.get("status") != "finished":
        raise OutputError(f"{file} is a partial result: run the same command again to finish the search")
    if not content.get("measured_on") or not content.get("measured_with"):
        raise OutputError(f"{file} does not say which documents and which model it was measured with: {AGAIN}")
    try:
        report = Report.model_validate(content)
    except ValidationError as error:
        raise OutputError(f"{file} is damaged ({explain(error)}): {AGAIN}") from None
    if not report.results or factors.factors.as_json() != content.get("factors"):
        raise OutputError(f"{file} and factors.json beside it are not of the same search: {AGAIN}")
    return Results(factors, report, content, parse_spec(report.spec, stored=True))
