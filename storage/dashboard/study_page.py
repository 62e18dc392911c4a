"""What the dashboard shows of a study besides its trials: a note and a figure, from what is known so far."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from factor_search.measure.evaluation import OK
from factor_search.report.palette import FOUND_COLOUR, METHOD_COLOURS
from storage.jobs import Job

DOCUMENTS_NAMED = 8
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!$])")


@dataclass
class SearchSoFar:
    """Outcomes and perplexities by candidate, and the best of them."""

    outcomes: dict[int, str] = field(default_factory=dict)
    perplexities: dict[int, float] = field(default_factory=dict)
    best: int | None = None
    best_factors: tuple[float, ...] = ()

    def saw(self, number: int, outcome: str | None, perplexity: float | None, factors: Sequence[float]) -> None:
        """Take in a candidate as its trial shows it; one that still runs has no outcome."""
        if outcome is None:
            return
        self.outcomes[number] = outcome
        if outcome != OK or perplexity is None:
            return
        self.perplexities[number] = perplexity
        if self.best is None or (perplexity, number) < (self.perplexities[self.best], self.best):
            self.best, self.best_factors = number, tuple(factors)


@dataclass(frozen=True)
class Figure:
    """A Plotly figure, as far as the dashboard wants one: an object that can be written as JSON."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]

    def to_json(self) -> str:
        """What Plotly in the page draws."""
        return json.dumps({"data": self.data, "layout": self.layout}, separators=(",", ":"))


def figures(prepared: dict[str, Any], search: SearchSoFar, report: dict[str, Any] | None) -> dict[str, Figure]:
    """The figures by their ids, the best so far against the closed forms; none before there is a best candidate.

    The dashboard itself draws the course of the search.
    """
    if search.best is None:
        return {}
    factors, name = search.best_factors, f"candidate {search.best}"
    if report is not None:
        factors, name = report["factors"]["rescale_factors"], "found"
    return {"rescale-factors": _factors_figure(prepared, factors, name)}


def _factors_figure(prepared: dict[str, Any], factors: Sequence[float], name: str) -> Figure:
    closed_forms = prepared.get("closed_forms", {})
    lines = [
        _line(method, closed_forms[method]["rescale_factors"], colour, 1.3)
        for method, colour in METHOD_COLOURS.items()
        if method in closed_forms
    ]
    layout = _layout("Rescale factors over the rotary pairs", "rotary pair i", "rescale factor")
    layout["yaxis"]["type"] = "log"
    critical = prepared.get("geometry", {}).get("critical_dimension")
    if critical is not None:
        mark = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": critical / 2, "x1": critical / 2}
        layout["shapes"] = [mark | {"line": {"color": "#888", "dash": "dash", "width": 1}}]
        label = {"x": critical / 2, "y": 1, "yref": "paper", "text": "critical", "showarrow": False, "xanchor": "left"}
        layout["annotations"] = [label]
    return Figure([*lines, _line(name, factors, FOUND_COLOUR, 3)], layout)


def _line(name: str, factors: Sequence[float], colour: str, width: float) -> dict[str, Any]:
    line = {"color": colour, "width": width}
    rounded = [float(f"{factor:.5g}") for factor in factors]
    return {"type": "scatter", "mode": "lines", "name": name, "y": rounded, "line": line}


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    return {"title": {"text": title}, "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def note(
    job: Job, target_length: int, prepared: dict[str, Any], search: SearchSoFar, report: dict[str, Any] | None
) -> str:
    """The study's note, in Markdown."""
    model = job.spec.get("model") or {}
    geometry = prepared.get("geometry", {})
    original = geometry.get("original_length")
    scale = f" from {original:,}, scale {target_length / original:g}" if original else ""
    lines = [
        f"## {_plain(job.name)}",
        "",
        f"- **Job**: [{job.id}](/jobs/{job.id}), {job.state}" + (f": {_plain(job.error)}" if job.error else ""),
        f"- **Model**: {_plain(str(model.get('id', '')))}, {_plain(str(geometry.get('architecture', '')))}",
        f"- **Target length**: {target_length:,} tokens{scale}",
        f"- **Budget**: {_budget(job.spec.get('budget') or {})}",
        f"- **Evaluations**: {_outcomes(search)}",
    ]
    lines += [
        f"- **{part.replace('_', '-').capitalize()} documents**: {_names(sources)}"
        for part, sources in prepared.get("documents", {}).items()
    ]
    if search.best is not None:
        best = search.perplexities[search.best]
        lines.append(f"- **Best on the search documents**: {best:.4f}, candidate {search.best}")
    if report is not None:
        lines += ["", *_results(report), "", f"[Full report](/v1/jobs/{job.id}/report)"]
    return "\n".join(lines) + "\n"


def _results(report: dict[str, Any]) -> list[str]:
    """What was found beside the closed forms, on the documents that the search has not seen."""
    measured = str(report.get("objective", {}).get("measures", "perplexity"))
    title = f"### {measured[0].upper()}{measured[1:]} on held-out documents"
    lines = [title, "", "| factors | held-out | standard error |", "|---|---|---|"]
    for row in report.get("results", []):
        name = f"**{_plain(row['name'])}**" if row["name"] == "found" else _plain(row["name"])
        lines.append(f"| {name} | {_number(row['held_out'])} | {_number(row['standard_error'])} |")
    comparison = report.get("comparison")
    if comparison and comparison["standard_errors"] is not None:
        apart = f"{comparison['standard_errors']:+.1f} standard errors of the paired difference"
        lines += ["", f"Found against {comparison['best_closed_form']}, the best closed form: {apart}."]
    return lines


def _budget(budget: dict[str, Any]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in budget.items() if value is not None) or "none"


def _outcomes(search: SearchSoFar) -> str:
    counts = Counter(search.outcomes.values())
    parts = ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in counts.most_common())
    return f"{counts.total():,}" + (f" ({parts})" if parts else "")


def _names(sources: Sequence[str]) -> str:
    named = ", ".join(_plain(source.replace("\\", "/").rsplit("/", 1)[-1]) for source in sources[:DOCUMENTS_NAMED])
    more = f" and {len(sources) - DOCUMENTS_NAMED} more" if len(sources) > DOCUMENTS_NAMED else ""
    return f"{len(sources)}: {named}{more}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
