"""Running one job from its claim to its end, in its own thread."""

import logging
import threading
from collections.abc import Callable

from factor_search.errors import FactorSearchError, one_line
from factor_search.plan.kinds import KINDS
from factor_search.plan.kinds.contract import Execution
from factor_search.report.trackers.contract import End as TrackedEnd
from storage.errors import DatabaseError, LeaseLostError, StorageError
from storage.jobs import Job, Lease
from storage.states import JobState, StateRequest
from workers.job_evaluator import SHUTDOWN, JobStopped
from workers.job_run import End, JobRun, Tools
from workers.long_task_run import drive_long_task
from workers.search_run import drive_search

CLAIMS_IN_VAIN = 2
"""A job fails after this many claims in a row whose coordinators died before they recorded anything."""
RUNNERS: dict[Execution, Callable[[JobRun], End | None]] = {
    Execution.SEARCH: drive_search,
    Execution.WORKER: drive_long_task,
    Execution.CHECKPOINT: drive_long_task,
}
TRACKED: dict[str, TrackedEnd] = {
    JobState.FINISHED: "finished",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.PAUSED: "paused",
}
"""What trackers are told."""

logger = logging.getLogger(__name__)


class Driver:
    """Runs one job and records the state in which it ends."""

    def __init__(self, job: Job, lease: Lease, tools: Tools) -> None:
        """Start the thread."""
        self.lease = lease
        self._job = job
        self._tools = tools
        self._run = JobRun(job, lease, tools)
        self._thread = threading.Thread(target=self._drive, name=f"job-{lease.job_id}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def apply_request(self, request: str | None) -> None:
        """Apply what users requested of the job: pause, cancel, or None to continue."""
        if request is None:
            self._run.evaluator.resume()
        else:
            self._run.evaluator.stop(request)

    def stop(self, reason: str) -> None:
        """Stop running the job, because the lease is lost or this coordinator shuts down."""
        self._run.evaluator.stop(reason)

    def join(self, seconds: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(seconds)

    def _drive(self) -> None:
        try:
            end = self._outcome()
            self._run.tracking.end(TRACKED[end.state] if end is not None else "interrupted")
            self._run.trace.end(None if end is None else end.details.get("error"))
            if end is not None:
                self._run.persist(lambda: self._tools.jobs.end(self.lease, end.state, **end.details))
                self._log_end(end)
        except LeaseLostError as error:
            logger.warning("%s", error)
        except DatabaseError as error:
            logger.error("the end of job %s could not be recorded: %s", self.lease.job_id, error)
        except Exception:
            logger.exception("the end of job %s could not be recorded", self.lease.job_id)
        finally:
            self._run.tracking.end("interrupted")
            self._run.trace.end()
            self._tools.pool.leave(self._run.evaluator.pool_id)

    def _log_end(self, end: End) -> None:
        """One line on a job that has ended, with what it has cost in all."""
        if not logger.isEnabledFor(logging.INFO):
            return
        try:
            job = self._tools.jobs.get(self.lease.job_id)
        except StorageError:  # it was deleted at once, or the database is away
            return
        fields = {
            "event": str(end.state),
            "job": job.id,
            "kind": job.kind,
            "plan": job.plan_id,
            "stage": job.plan_stage,
            "seconds": None if job.started_at is None or job.ended_at is None else job.ended_at - job.started_at,
            "tokens": job.tokens,
            "device_seconds": job.device_seconds,
            "error": job.error,
        }
        cost = f"{job.tokens:,} tokens, {job.device_seconds:.1f} s of devices"
        reason = f": {job.error}" if job.error else ""
        logger.info("job %s %s (%s)%s", job.id, end.state, cost, reason, extra=fields)

    def _outcome(self) -> End | None:
        """The state in which the job ends, with its details; None if it was returned to the queue.

        Raises:
            LeaseLostError: another coordinator has taken over the job.
            DatabaseError: the database does not answer while this coordinator shuts down.
        """
        try:
            return self._run_by_kind()
        except JobStopped as stop:
            if stop.reason == SHUTDOWN:
                self._tools.jobs.give_back(self.lease, reason="its coordinator is shutting down")
            ends: dict[str, JobState] = {StateRequest.PAUSE: JobState.PAUSED, StateRequest.CANCEL: JobState.CANCELLED}
            return End(ends[stop.reason], {}) if stop.reason in ends else None
        except (LeaseLostError, DatabaseError):
            raise
        except FactorSearchError as error:
            return End(JobState.FAILED, {"error": str(error)})
        except Exception as error:
            logger.exception("job %s failed with an internal error", self.lease.job_id)
            return End(JobState.FAILED, {"error": f"internal error: {type(error).__name__}: {one_line(error)}"})

    def _run_by_kind(self) -> End | None:
        self.apply_request(self._job.request)
        self._run.evaluator.check()
        if self._job.claims_in_vain > CLAIMS_IN_VAIN:
            times, phase = self._job.claims_in_vain - 1, self._job.progress.get("phase") or "starting"
            error = (
                f"its coordinator died {times} times in a row before it recorded anything, the last time while {phase}"
                ": see the coordinator's log and its memory, and submit the job again when the cause is removed"
            )
            return End(JobState.FAILED, {"error": error})
        return RUNNERS[KINDS[self._job.kind].execution](self._run)
