"""The results of a plan, stage by stage, as one JSON document; every figure in the HTML page is read from it."""

import itertools
from collections.abc import Sequence
from typing import Any

from factor_search.measure.figures import compared
from factor_search.plan.kinds import kind_of
from factor_search.plan.kinds.contract import Execution, Outcome, Work, better
from factor_search.plan.kinds.search import JobWork
from factor_search.plan.spec import PlanSpec
from factor_search.report.document import versions
from factor_search.spec import PerplexitySpec

SCHEMA = "factor-search/plan-report@1"


def plan_report(
    plan: PlanSpec, works: Sequence[Work], outcomes: Sequence[Outcome], estimate: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The stages in their order, each with what was measured and a sentence on what it gained.

    Args:
        plan: as it is, or expanded.
        works: of the stages that have begun, in their order.
        outcomes: of those that have ended.
        estimate: what was expected of the plan; see :func:`factor_search.plan.estimate.estimate_plan`.
    """
    expected = {one["name"]: one for one in (estimate or {}).get("stages", ())}
    expanded = plan.expanded()
    stages = expanded.stages or []
    described = []
    for number, stage in enumerate(stages):
        entry: dict[str, Any] = {"name": stage.name, "kind": stage.kind, "status": "to come", "summary": ""}
        if number < len(outcomes):
            kind = kind_of(stage)
            figures = kind.figures(works[number], outcomes[number])
            entry |= {"status": "finished", "summary": kind.summary(figures), **figures}
            entry |= _cost(outcomes[number], expected.get(str(stage.name)))
        elif number < len(works):
            waits = kind_of(stage).execution == Execution.CHECKPOINT
            entry["status"] = "waiting" if waits else "unfinished"
        described.append(entry)
    return {
        "schema": SCHEMA,
        "name": plan.name,
        "status": "finished" if len(outcomes) == len(stages) else "unfinished",
        "plan": expanded.model_dump(mode="json", exclude={"trackers", "webhooks"}),
        "stages": described,
        "comparisons": _comparisons(works, outcomes),
        "estimate": None if estimate is None else {key: estimate[key] for key in ("total", "memory", "speed")},
        "versions": versions(),
    }


def _cost(outcome: Outcome, expected: dict[str, Any] | None) -> dict[str, Any]:
    """What a stage took, and what was expected of it: before the plan, or else when its search began."""
    taken = outcome.report.get("taken") or outcome.taken
    estimate = expected or outcome.report.get("estimate") or {}
    expectation = {key: estimate[key] for key in ("total", "memory") if key in estimate}
    cost = {"taken": taken, "estimate": expectation or None}
    return cost if taken or expectation else {}  # stages of earlier versions have neither


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
        if isinstance(work, JobWork) and isinstance(work.job.objective, PerplexitySpec)
    ]
    found = []
    for (one, first), (other, second) in itertools.combinations(searches, 2):
        if _measured(one) != _measured(other):
            continue
        difference = compared(second["losses"], first["losses"], [1] * len(first["losses"]))
        gained = better(difference["difference"], difference["difference_standard_error"])
        summary = f"{one.stage} against {other.stage} at {one.job.target_length:,} tokens: {gained}"
        names = {"stage": one.stage, "other": other.stage, "target_length": one.job.target_length}
        found.append({**names, **difference, "summary": summary})
    return found


def _measured(work: JobWork) -> tuple[Any, ...]:
    return work.kind, work.job.target_length, work.job.objective
