"""What all kinds of jobs need while they run: shared services, waiting, writing."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

from factor_search.report.tracing import Trace
from factor_search.report.trackers.contract import RunName
from factor_search.report.trackers.registry import FOLDER
from factor_search.report.trackers.tracking import Tracking
from factor_search.spec import BudgetSpec, JobSpec, TrackerKind
from factor_search.text.samples import Samples
from storage.evaluations import EvaluationStore
from storage.jobs import Job, JobStore, Lease
from workers.aside import aside
from workers.attempts import ATTEMPTS, PREPARE_SECONDS, PrepareError, PrepareTimeoutError, outcome_of
from workers.backend import WorkerBackend, WorkerGoneError
from workers.capacity import CapacityError, missing_capacity
from workers.job_evaluator import JobEvaluator
from workers.model_worker import Prepared, Setting
from workers.policy import Policy
from workers.pool import Pool
from workers.progress import ProgressWriter
from workers.recorder import Recorder

WAIT_FOR_CAPACITY_SECONDS = 10.0
READ_AGAIN_SECONDS = 5.0
"""Pause after the first reading of documents that was lost with its process."""
IDENTITY = "identity"
"""Key of the model's identity in what is recorded when a job starts."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the jobs of a coordinator share."""

    jobs: JobStore
    evaluations: EvaluationStore
    recorder: Recorder
    pool: Pool
    backend: WorkerBackend
    policy: Policy
    unprojected: Callable[[str], int] = lambda job_id: 0
    """Waits briefly for the dashboard and returns how many candidates of a job it does not show yet."""
    prepare_seconds: float = PREPARE_SECONDS
    """Limit for reading documents, and for loading a model."""
    alone: Callable[[], bool] = lambda: True
    """Whether there is no other coordinator, which could have more room."""


@dataclass(frozen=True)
class End:
    """The state in which a job ends, with its details."""

    state: str
    details: Mapping[str, Any]
    """See :meth:`storage.jobs.JobStore.end`."""


class JobRun:
    """One coordinator's attempt at one job."""

    def __init__(self, job: Job, lease: Lease, tools: Tools) -> None:
        self.job = job
        self.lease = lease
        self.tools = tools
        place = {"factor_search.id": lease.job_id, "factor_search.name": job.name}
        self.trace = Trace(f"{job.kind} {job.name}", {**place, "factor_search.attempt": lease.attempt})
        self.evaluator = JobEvaluator(lease, tools.evaluations, tools.recorder, tools.pool, tools.backend, self.trace)
        self.tracking = Tracking((), self._run_name)
        """Of nothing until :meth:`track`."""

    def persist(self, call: Callable[[], T]) -> T:
        """Read or write, repeating the call until the database answers."""
        return self.evaluator.persist(call)

    def wait(self, future: "Future[T]", limited: str | None = None) -> T:
        """The result of a future, unless the job is stopped meanwhile.

        Args:
            future: what to wait for.
            limited: what it does, if the limit for preparing a job holds for it.

        Raises:
            JobStopped: the job was stopped.
            PrepareTimeoutError: it takes too long.
        """
        until = time.monotonic() + self.tools.prepare_seconds
        while True:
            self.evaluator.check()
            if limited is not None and time.monotonic() > until:
                raise PrepareTimeoutError(limited, self.tools.prepare_seconds)
            try:
                return future.result(timeout=0.2)
            except FutureTimeoutError:
                if future.done():
                    raise

    def track(self, kinds: Sequence[TrackerKind]) -> Tracking:
        """Report to trackers from now on; those that cannot be used are dropped with an event."""
        self.tracking = Tracking(kinds, self._run_name, self._tracker_dropped)
        return self.tracking

    def _run_name(self) -> RunName:
        folder = self.tools.policy.require_work_folder() / FOLDER / self.lease.job_id
        folder.mkdir(parents=True, exist_ok=True)
        return RunName(id=self.lease.job_id, name=self.job.name, group=self.job.plan_id, folder=folder)

    def _tracker_dropped(self, reason: str) -> None:
        logger.warning("job %s: %s", self.lease.job_id, reason)
        self.evaluator.event("tracker_dropped", {"reason": reason})

    def progress(self, budget: BudgetSpec) -> ProgressWriter:
        """The recorder of a search's progress."""
        return ProgressWriter(
            self.lease, budget, self.tools.recorder, self.tools.pool, self.job.progress, self.trace.phase
        )

    def aside(self, call: Callable[[], T], what: str) -> T:
        """Make a call that may hang, such as one that looks for files on a slow disk, in a thread of its own.

        Raises:
            JobStopped: the job was stopped.
            PrepareTimeoutError: it takes too long; the thread is left to itself.
        """
        return self.wait(aside(call, f"aside-{self.lease.job_id}"), what)

    def prepare(self, spec: JobSpec, on_phase: Callable[[str], Any]) -> Prepared:
        """Read the documents beside the workers, then have a worker load the model.

        Raises:
            PrepareError: the documents could not be read, or no worker could load the model.
            ModelChangedError: it is another model than the one with which an earlier run of the job began.
        """
        pool, pool_id = self.tools.pool, self.evaluator.pool_id
        pool.join(pool_id, spec.model, self.evaluator)  # workers start meanwhile
        on_phase("reading documents")
        samples = self._read(spec)
        on_phase(f"loading {spec.model.id}")
        begun = self.persist(lambda: self.tools.evaluations.prepared(self.lease.job_id)) or {}
        prepared = self.wait(pool.prepare(pool_id, spec, samples, begun.get(IDENTITY)))
        self.evaluator.use(prepared, Setting.of(spec, prepared.identity))
        return prepared

    def _read(self, spec: JobSpec) -> Samples | None:
        attempts = 0
        while True:
            reading = self.tools.backend.read(spec)
            if reading is None:
                return None
            attempts += 1
            try:
                return self.wait(reading.result, "reading the documents")
            except WorkerGoneError as error:
                if attempts >= ATTEMPTS[outcome_of(error)]:
                    raise PrepareError(f"the documents could not be read: {error}") from None
                self._pause(attempts * READ_AGAIN_SECONDS)  # if Ray itself is gone, this process ends meanwhile
            finally:
                if not reading.result.done():
                    reading.cancel()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.evaluator.check()
            time.sleep(0.2)

    def has_room(self, spec: JobSpec) -> bool:
        """Whether the job fits into the cluster; if not, it is returned to the queue and claimed again later.

        Raises:
            CapacityError: this cluster cannot grow, and there is no other coordinator.
        """
        missing = missing_capacity(spec, self.tools.backend.capacity())
        if missing is not None:
            self._wait_for_capacity(spec, missing)
        return missing is None

    def has_workers(self, spec: JobSpec, progress: ProgressWriter) -> bool:
        """Wait for workers that are starting; like :meth:`has_room` if they no longer fit."""
        least, pool = spec.resources.workers, self.tools.pool
        if pool.status()["alive"] < least:
            progress.phase(f"waiting for {least} worker{'s' * (least > 1)}")
        while pool.status()["alive"] < least:
            self.evaluator.check()
            if not self.has_room(spec):
                return False
            time.sleep(0.5)
        return True

    def _wait_for_capacity(self, spec: JobSpec, missing: str) -> None:
        """Return the job to the queue until machines join or another coordinator has room; fail if neither can be."""
        if not self.tools.backend.grows and self.persist(self.tools.alone):
            raise CapacityError(missing)
        reason = None if self.job.progress.get("phase") == missing else missing  # reported once, not with every attempt
        if reason is not None:
            self.progress(spec.budget).phase(missing).result()
        give_back = self.tools.jobs.give_back
        self.persist(lambda: give_back(self.lease, wait_seconds=WAIT_FOR_CAPACITY_SECONDS, reason=reason))
