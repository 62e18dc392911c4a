"""What a plan has come to, stage by stage, as one JSON document; every figure in the HTML page is read from it."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from factor_search.plan.figures import compared
from factor_search.plan.spec import PlanSpec
from factor_search.plan.work import EvaluateWork, Outcome, SearchWork, Work
from factor_search.report.document import FOUND, measures
from factor_search.spec import PerplexitySpec
from factor_search.version import versions

SCHEMA = "factor-search/plan-report@1"
_ROW = ["name", "is", "outcome", "documents", "tokens", "validation", "held_out", "standard_error"]
_ROW += ["difference", "difference_standard_error", "text_perplexity", "text_standard_error"]


def plan_report(plan: PlanSpec, works: Sequence[Work], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The stages in their order, each with what was measured and a sentence on what it gained.

    Args:
        plan: as it is, or expanded.
        works: of the stages that have begun, in their order.
        outcomes: of those that have ended.
    """
    expanded = plan.expanded()
    stages = expanded.stages or []
    described = []
    for number, stage in enumerate(stages):
        entry: dict[str, Any] = {"name": stage.name, "kind": stage.kind, "status": "to come", "summary": ""}
        if number < len(outcomes):
            figures = _FIGURES[stage.kind](works[number], outcomes[number])
            entry |= {"status": "finished", "summary": _SUMMARIES[stage.kind](figures), **figures}
        elif number < len(works):
            entry["status"] = "waiting" if stage.kind == "await_checkpoint" else "unfinished"
        described.append(entry)
    return {
        "schema": SCHEMA,
        "name": plan.name,
        "status": "finished" if len(outcomes) == len(stages) else "unfinished",
        "plan": expanded.model_dump(mode="json"),
        "stages": described,
        "comparisons": _comparisons(works, outcomes),
        "versions": versions(),
    }


def table(report: dict[str, Any]) -> str:
    """The stages for a terminal: a line each, and what it gained."""
    width = max(len(stage["name"]) for stage in report["stages"])
    lines = [f"{stage['name']:{width}}  {stage['summary'] or stage['status']}" for stage in report["stages"]]
    return "\n".join([*lines, *(one["summary"] for one in report["comparisons"])])


def _comparisons(works: Sequence[Work], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Searches for the same length, in pairs over the held-out documents, which all have as many tokens."""
    searches = [
        (work, outcome.report["results"][0])
        for work, outcome in zip(works, outcomes, strict=False)
        if isinstance(work, SearchWork) and isinstance(work.job.objective, PerplexitySpec)
    ]
    found = []
    for (one, first), (other, second) in itertools.combinations(searches, 2):
        if _measured(one) != _measured(other):
            continue
        difference = compared(second["losses"], first["losses"], [1] * len(first["losses"]))
        better = _better(difference["difference"], difference["difference_standard_error"])
        summary = f"{one.stage} against {other.stage} at {one.job.target_length:,} tokens: {better}"
        names = {"stage": one.stage, "other": other.stage, "target_length": one.job.target_length}
        found.append({**names, **difference, "summary": summary})
    return found


def _measured(work: SearchWork) -> tuple[Any, ...]:
    return work.kind, work.job.target_length, work.job.objective


def _search_figures(work: Work, outcome: Outcome) -> dict[str, Any]:
    assert isinstance(work, SearchWork)
    report, factors = outcome.report, outcome.factors or {}
    return {
        "target_length": work.job.target_length,
        "objective": report["objective"],
        "candidates": report["search"]["candidates"],
        "ended_by": report["search"]["ended_by"],
        "results": [{key: row[key] for key in _ROW if key in row} for row in report["results"]],
        "comparison": report["comparison"],
        "factors": {key: factors[key] for key in ("scale", "rescale_factors", "initial_tokens", "attention_factor")},
    }


def _search_summary(figures: dict[str, Any]) -> str:
    found, comparison = figures["results"][0], figures["comparison"]
    text = f"{measures(figures)} {_plus_minus(found['held_out'], found['standard_error'])} at "
    text += f"{figures['target_length']:,} tokens"
    if not comparison or comparison["difference"] is None:
        return text
    against = "the long factors" if comparison["best_closed_form"] == "long" else comparison["best_closed_form"]
    return f"{text}; {_better(comparison['difference'], comparison['standard_error'])} than {against}"


def _readjust_figures(work: Work, outcome: Outcome) -> dict[str, Any]:
    figures = _search_figures(work, outcome)
    long = [row for row in figures["results"] if "long" in (row["name"], row["is"])]
    return figures | {"long": long[0] if long else None}


def _readjust_summary(figures: dict[str, Any]) -> str:
    found, long = figures["results"][0], figures["long"]
    text = (
        f"perplexity {_plus_minus(found['held_out'], found['standard_error'])} at {figures['target_length']:,} tokens"
    )
    if long is None or long["difference"] is None:
        return f"{text}, with the long factors: no better ones were found" if found["is"] == "long" else text
    return f"{text}; {_better(long['difference'], long['difference_standard_error'])} than the long factors"


def _finetune_figures(work: Work, outcome: Outcome) -> dict[str, Any]:
    return dict(outcome.report)


def _finetune_summary(figures: dict[str, Any]) -> str:
    last = figures["gain"][-1]
    before, after = last["before"], last["after"]
    text = f"{len(figures['losses']):,} steps"
    if before is None or after is None:
        return f"{text}; held-out documents could not be measured"
    return (
        f"{text}: perplexity {_plus_minus(before['perplexity'], before['standard_error'])} to "
        f"{_plus_minus(after['perplexity'], after['standard_error'])} at {last['length']:,} tokens; "
        f"{_better(last['difference'], last['difference_standard_error'])} than before"
    )


def _evaluate_figures(work: Work, outcome: Outcome) -> dict[str, Any]:
    assert isinstance(work, EvaluateWork)
    return dict(outcome.report)


def _evaluate_summary(figures: dict[str, Any]) -> str:
    ladder = figures["ladder"]
    longest = [rung for rung in ladder["rungs"] if rung["length"] == ladder["lengths"][-1]]
    found = next(rung for rung in longest if rung["name"] == FOUND)
    parts = []
    if found["perplexity"] is not None:
        at = f"perplexity {_plus_minus(found['perplexity'], found['standard_error'])} at {found['length']:,} tokens"
        if found["difference"] is not None:
            best = ladder["best_closed_forms"][str(found["length"])]
            at += f", {_better(-found['difference'], found['difference_standard_error'])} than {best}"
        parts.append(at)
    short = figures["short_window"]
    long = next(row for row in short["rows"] if row["name"] == "long")
    if long["difference"] is not None:
        cost = _plus_minus(long["difference"], long["difference_standard_error"])
        parts.append(f"short texts lose {cost} nats per token with the long factors")
    if short["recovered"] is not None:
        recovered = _plus_minus(short["recovered"]["share"], short["recovered"]["standard_error"], 2)
        parts.append(f"readjusting recovers {recovered} of that")
    overall = (figures["passkey"] or {}).get("overall")  # outcomes of the first plans have none
    if overall:
        parts.append(f"{_plus_minus(overall['accuracy'], overall['standard_error'], 2)} of passkeys found")
    return "; ".join(parts)


_FIGURES: dict[str, Callable[[Work, Outcome], dict[str, Any]]] = {
    "search": _search_figures,
    "readjust": _readjust_figures,
    "finetune": _finetune_figures,
    "await_checkpoint": lambda work, outcome: dict(outcome.report),
    "evaluate": _evaluate_figures,
    "export": lambda work, outcome: {**outcome.report, "model": outcome.model.id if outcome.model else None},
}
_SUMMARIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "search": _search_summary,
    "readjust": _readjust_summary,
    "finetune": _finetune_summary,
    "await_checkpoint": lambda figures: f"goes on with {figures['checkpoint']}",
    "evaluate": _evaluate_summary,
    "export": lambda figures: f"a checkpoint that plain transformers loads, {figures['profile']}",
}


def _plus_minus(value: float | None, error: float | None, digits: int = 4) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def _better(difference: float | None, error: float | None) -> str:
    """A paired difference of losses in words; above 0 is better."""
    if difference is None:
        return "not comparable"
    size = _plus_minus(abs(difference), error)
    return f"{size} nats per token {'better' if difference >= 0 else 'worse'}"
