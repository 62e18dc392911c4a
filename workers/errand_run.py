"""A job that one worker does whole: a fine-tuning, an export, the check of a checkpoint that was handed in."""

import contextlib
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from factor_search.errors import SpecError
from factor_search.plan.work import AwaitWork, EvaluateWork, ExportWork, FinetuneWork, Outcome, parse_work
from storage.evaluations import Batch
from storage.plans import CHECKPOINT
from storage.states import JobState
from workers.job_run import End, JobRun
from workers.model_worker import ErrandCall
from workers.performance import HandingIn, Performance
from workers.progress import EVENT_SECONDS
from workers.tasks import Errand

END_SECONDS = 10.0


def drive_errand(run: JobRun) -> End:
    """Have a worker do the job.

    Raises:
        FactorSearchError: the job fails, saying why.
        JobStopped: it is not to be driven any further; nothing works for it any more.
    """
    document = dict(run.job.spec)
    checkpoint = document.pop(CHECKPOINT, None)
    work = parse_work(document)
    run.tools.policy.check_work(work)
    if isinstance(work, AwaitWork):
        run.tools.policy.check_handed_in(checkpoint)
        call: ErrandCall = HandingIn(work, Path(checkpoint))
    elif isinstance(work, FinetuneWork | ExportWork):
        call = Performance(work, folder_of(run))
    else:
        raise SpecError(f"a job of kind {run.job.kind} is not done by one worker")
    return End(JobState.FINISHED, {"outcome": do_errand(run, work, call).model_dump(mode="json")})


def folder_of(run: JobRun) -> Path:
    """Where what a job makes is kept: a job that does the same has the same."""
    return run.tools.policy.made_here() / f"{run.job.kind}-{run.job.spec_sha256[:24]}"


def do_errand(run: JobRun, work: FinetuneWork | EvaluateWork | ExportWork | AwaitWork, call: ErrandCall) -> Outcome:
    """Have a worker do a long work, and end the worker if the job is stopped meanwhile."""
    pool, pool_id = run.tools.pool, run.evaluator.pool_id
    progress = ErrandProgress(run)
    pool.join(pool_id, work.model, run.evaluator)
    progress.phase("waiting for a worker")
    result: Future[Outcome] = Future()
    errand = Errand(job_id=pool_id, model=work.model, call=call, heard=progress.hear, result=result)
    pool.submit([errand])
    try:
        return run.wait(result)
    finally:
        if not result.done():
            with contextlib.suppress(FutureTimeoutError):  # a slow pool must not make a failure of a pause
                pool.end(errand).result(END_SECONDS)


class ErrandProgress:
    """What people see of a long work: its progress as stored, and events at a pace that they can read."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._told_at = -1e9
        self._progress: dict[str, Any] = dict(run.job.progress) | {"phase": "", "workers": 0}

    def phase(self, text: str) -> None:
        """A new phase begins."""
        self.hear({"phase": text})

    def hear(self, news: dict[str, Any]) -> None:
        """Record what is new; called from the pool's thread."""
        now, step = time.monotonic(), self._progress.get("step") or 0
        phase = news.get("phase", self._progress["phase"])
        new_phase = phase != self._progress["phase"]
        got_on = news.get("step", 0) > step
        self._progress |= news | {"workers": 1}
        if news.get("steps"):
            self._progress["share"] = min(news["step"] / news["steps"], 1.0)
        events: list[tuple[str, dict[str, Any]]] = [("phase", {"phase": phase})] if new_phase else []
        if news.get("step") is not None and now - self._told_at >= EVENT_SECONDS:
            self._told_at = now
            events.append(("progress", dict(self._progress)))
        progress = dict(self._progress)

        def add(batch: Batch) -> None:
            batch.progress, batch.got_on = progress, batch.got_on or got_on
            batch.events.extend(events)

        self._run.tools.recorder.put(self._run.lease, add)
