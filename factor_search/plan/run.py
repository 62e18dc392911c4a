"""A whole plan in this process: one stage after the other, each in its own folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from factor_search.errors import DataError, SpecError
from factor_search.files.atomic import write_text
from factor_search.files.json_documents import write_json
from factor_search.job import run_job
from factor_search.plan.check import check_documents, check_plan
from factor_search.plan.checkpoint import accept_checkpoint
from factor_search.plan.folders import Folders
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import OnProgress, Outcome, Work
from factor_search.plan.kinds.export import LONG_FILE, SHORT_FILE
from factor_search.plan.kinds.search import JobWork
from factor_search.plan.page import render
from factor_search.plan.perform import perform_whole
from factor_search.plan.report import plan_report
from factor_search.plan.spec import PlanSpec
from factor_search.plan.work import last_factors, work_of
from factor_search.report.document import build_factors_file
from factor_search.report.results import write_results
from factor_search.report.trackers.registry import check_installed
from factor_search.report.trackers.search import flattened, on_progress, tracked, tracked_search
from factor_search.search.selection import JobWatcher
from factor_search.spec import check_no_webhooks


@dataclass
class PlanWatcher:
    """What a plan reports while it runs; every member may be replaced."""

    stage: Callable[[int, Work, bool], None] = lambda number, work, known: None
    """Number of the stage, from 0, and whether its result is known from an earlier run."""
    job: Callable[[JobWork], JobWatcher] = lambda work: JobWatcher()
    """Gives the watcher of a search."""
    progress: OnProgress = lambda progress: None
    """Receives the progress of every other stage."""


@dataclass
class PlanResult:
    """How far a plan has come."""

    plan: PlanSpec
    """Expanded."""
    works: list[Work] = field(default_factory=list)
    """Of all stages that have ended, and of the one that has not."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Of all stages that have ended."""
    status: Literal["finished", "interrupted", "waiting"] = "finished"
    estimate: dict[str, Any] | None = None


class _InterruptedError(Exception):
    """A search was interrupted, and has left a partial result."""


def run_plan(
    spec: PlanSpec,
    out: Path,
    watcher: PlanWatcher | None = None,
    *,
    start_over_from: str | None = None,
    checkpoint: Path | None = None,
    estimate: dict[str, Any] | None = None,
) -> PlanResult:
    """Run a plan; run again it resumes, and only stages whose work has changed are done again.

    A keyboard interrupt ends it at whatever the stage has kept. After every stage ``out`` has ``report.json`` and
    ``report.html`` on all so far, and ``factors.json`` and ``short_factors.json`` for the last model so far.

    Args:
        spec: the plan.
        out: folder of this plan alone.
        watcher: receives the progress.
        start_over_from: the stage before which everything is kept; what it and later ones have left is removed.
        checkpoint: supplied to the first stage that awaits one and has none.
        estimate: what is expected of the plan, for its report.

    Raises:
        FactorSearchError: see its subclasses; nothing that was written before is lost.
    """
    check_plan(spec)
    check_no_webhooks(spec.webhooks)
    check_installed(spec.trackers)
    watcher, plan = watcher or PlanWatcher(), spec.expanded()
    names = [str(stage.name) for stage in plan.stages or ()]
    if start_over_from is not None and start_over_from not in names:
        raise SpecError(f"the plan has no stage {start_over_from}, only {', '.join(names)}")
    folders, result = Folders(out), PlanResult(plan, estimate=estimate)
    with folders.locked():
        write_json(out / "plan.json", plan.model_dump(mode="json"))
        if start_over_from is not None:
            folders.drop(set(names[names.index(start_over_from) :]))
        for number in range(len(names)):
            work = work_of(plan, number, result.outcomes)
            result.works.append(work)
            outcome = folders.outcome(work)
            watcher.stage(number, work, outcome is not None)
            if outcome is not None:
                folders.open(work)
                result.outcomes.append(outcome)
                continue
            try:
                outcome, checkpoint = _done(work, folders.begin(work), watcher, checkpoint, plan.name)
            except (KeyboardInterrupt, _InterruptedError):
                result.status = "interrupted"
                break
            if outcome is None:
                result.status = "waiting"
                break
            result.outcomes.append(outcome)
            _keep(work, result.outcomes, folders)
            _write(result, out)
        _write(result, out)
    if checkpoint is not None and result.status == "finished":
        raise SpecError(f"no stage waited for {checkpoint}: to take it in place of another, start over from that stage")
    return result


def _done(
    work: Work, folder: Path, watcher: PlanWatcher, checkpoint: Path | None, plan: str
) -> tuple[Outcome | None, Path | None]:
    """A stage's outcome, None if it waits; and the checkpoint that is still to be used."""
    if isinstance(work, JobWork):
        return _search(work, folder, watcher, plan), checkpoint
    if not isinstance(work, AwaitWork):
        return _perform(work, folder, watcher, plan), checkpoint
    write_json(folder / LONG_FILE, work.factors)
    return (None, None) if checkpoint is None else (accept_checkpoint(work, checkpoint), None)


def _keep(work: Work, outcomes: Sequence[Outcome], folders: Folders) -> None:
    """Keep the last outcome, unless it was measured on other documents than those before."""
    try:
        check_documents(outcomes)
    except DataError:
        folders.drop({work.stage})
        raise
    folders.end(work, outcomes[-1])


def _search(work: JobWork, folder: Path, watcher: PlanWatcher, plan: str) -> Outcome:
    job = work.tracked_job()
    with tracked_search(job, folder, watcher.job(work), group=plan) as search:
        result = run_job(job, folder, search.watcher)
        report = write_results(result, folder)
        search.conclude(result, report)
    if result.interrupted:
        raise _InterruptedError
    return Outcome(factors=build_factors_file(result).as_json(), report=report)


def _perform(work: Work, folder: Path, watcher: PlanWatcher, plan: str) -> Outcome:
    with tracked(work.trackers, f"{plan}/{work.stage}", folder, group=plan) as tracking:
        tracking.parameters(flattened(work.model_dump(mode="json", exclude={"trackers"})))
        outcome = perform_whole(work, folder, on_progress(tracking, watcher.progress))
        tracking.file("report.json", lambda: json.dumps(outcome.report, indent=1))
    return outcome


def _write(result: PlanResult, out: Path) -> None:
    """The report and the factors so far."""
    report: dict[str, Any] = plan_report(result.plan, result.works, result.outcomes, result.estimate)
    write_json(out / "report.json", report)
    write_text(out / "report.html", render(report))
    pair = last_factors(result.plan, result.works, result.outcomes)
    for name, factors in zip((LONG_FILE, SHORT_FILE), pair, strict=True):
        if factors is not None:
            write_json(out / name, factors)
        else:
            (out / name).unlink(missing_ok=True)
