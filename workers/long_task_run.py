"""Running a job that a single worker does: a fine-tuning, an evaluation, an export, the check of a checkpoint."""

import contextlib
import json
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from factor_search.plan.kinds import kind_of
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.perform import with_evaluated
from factor_search.plan.work import parse_work
from factor_search.report.trackers.search import flattened, on_progress
from factor_search.search.problem import SearchProblem
from factor_search.spec import JobSpec
from storage.evaluations import Batch
from storage.job_rows import Spent, work_folder_name
from storage.plans import CHECKPOINT
from storage.states import JobState
from workers.job_run import End, JobRun
from workers.model_worker import LongTaskCall
from workers.progress import EVENT_SECONDS
from workers.search_run import start_stage
from workers.stage_estimate import estimate_of_stage, tell_estimate
from workers.stage_task import CheckpointCheck, StageTask
from workers.tasks import LongTask

END_SECONDS = 10.0


def drive_long_task(run: JobRun) -> End | None:
    """Evaluate the stage's candidates and have a worker do the rest; None if the job was returned to the queue.

    Raises:
        FactorSearchError: the job fails for this reason.
        JobStopped: the job was stopped, and no worker works for it any more.
    """
    document = dict(run.job.spec)
    checkpoint = document.pop(CHECKPOINT, None)
    work = parse_work(document)
    run.aside(lambda: run.tools.policy.check_work(work), "looking for the files of the stage")
    if isinstance(work, AwaitWork):
        run.aside(
            lambda: run.tools.policy.check_supplied_checkpoint(checkpoint), "looking for the files of the checkpoint"
        )
        call: LongTaskCall = CheckpointCheck(work, Path(checkpoint))
    else:
        call = StageTask(work, folder_of(run))
    tracking = run.track(work.trackers)
    if tracking:
        tracking.parameters(flattened(work.model_dump(mode="json", exclude={"trackers"})))
    estimate = estimate_of_stage(run)
    tell_estimate(run, estimate)
    evaluated: dict[str, Any] = {}
    if (job := work.evaluated_as()) is not None:
        if not run.has_room(job):
            return None
        evaluated = evaluate_candidates(run, work, job)
    outcome = with_evaluated(run_long_task(run, work, call), evaluated)
    if estimate is not None:
        outcome = outcome.model_copy(
            update={"report": outcome.report | {"estimate": {key: estimate[key] for key in ("total", "memory")}}}
        )
    taken = outcome.taken or {}
    spent = Spent(int(taken.get("tokens", 0)), float(taken.get("seconds", 0.0)))
    tracking.file("report.json", lambda: json.dumps(outcome.report, indent=1))
    return End(JobState.FINISHED, {"outcome": outcome.model_dump(mode="json"), "spent": spent})


def evaluate_candidates(run: JobRun, work: Work, job: JobSpec) -> dict[str, Any]:
    """Evaluate the candidates of a stage on all workers and store every evaluation."""
    progress = LongTaskProgress(run)
    prepared = run.prepare(job, progress.phase)
    start_stage(run, SearchProblem.of(job, prepared.geometry), prepared)
    progress.phase("measuring a ladder of lengths")
    evaluated: dict[str, Any] = kind_of(work).evaluate(work, run.evaluator, prepared.geometry, prepared.samples)
    run.persist(lambda: run.tools.evaluations.end_search(run.lease))
    return evaluated


def folder_of(run: JobRun) -> Path:
    """The folder of a job's files; jobs with identical work share it."""
    return run.tools.policy.require_work_folder() / work_folder_name(run.job.kind, run.job.spec_sha256)


def run_long_task(run: JobRun, work: Work, call: LongTaskCall) -> Outcome:
    """Have a worker do a long-running task, and end the worker if the job is stopped meanwhile."""
    pool, pool_id = run.tools.pool, run.evaluator.pool_id
    progress = LongTaskProgress(run)
    model = work.access().models[0]
    pool.join(pool_id, model, run.evaluator)
    progress.phase("waiting for a worker")
    result: Future[Outcome] = Future()
    long_task = LongTask(
        job_id=pool_id, model=model, call=call, on_progress=on_progress(run.tracking, progress.update), result=result
    )
    pool.submit([long_task])
    try:
        return run.wait(result)
    finally:
        if not result.done():
            with contextlib.suppress(FutureTimeoutError):  # a slow pool must not turn a pause into a failure
                pool.end(long_task).result(END_SECONDS)


class LongTaskProgress:
    """The progress of a long-running task: stored with each report, published as events at a readable rate."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._event_at = -1e9
        self._progress: dict[str, Any] = dict(run.job.progress) | {"phase": "", "workers": 0}

    def phase(self, text: str) -> None:
        """Record a new phase."""
        self.update({"phase": text})

    def update(self, progress: dict[str, Any]) -> None:
        """Record a progress report; called from the pool's thread."""
        now, step = time.monotonic(), self._progress.get("step") or 0
        phase = progress.get("phase", self._progress["phase"])
        new_phase = phase != self._progress["phase"]
        got_on = progress.get("step", 0) > step
        self._progress |= progress | {"workers": 1}
        if progress.get("steps"):
            self._progress["share"] = min(progress["step"] / progress["steps"], 1.0)
        if new_phase:
            self._run.trace.phase(phase)
        events: list[tuple[str, dict[str, Any]]] = [("phase", {"phase": phase})] if new_phase else []
        if progress.get("step") is not None and now - self._event_at >= EVENT_SECONDS:
            self._event_at = now
            events.append(("progress", dict(self._progress)))
        stored = dict(self._progress)

        def add(batch: Batch) -> None:
            batch.progress, batch.got_on = stored, batch.got_on or got_on
            batch.events.extend(events)

        self._run.tools.recorder.put(self._run.lease, add)
