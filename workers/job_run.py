"""What the ways of driving a job have in common: what they share with other jobs, and how they wait and write."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

from factor_search.spec import BudgetSpec, JobSpec
from storage.evaluations import EvaluationStore
from storage.jobs import Job, JobStore, Lease
from workers.backend import WorkerBackend
from workers.capacity import CapacityError, missing_capacity
from workers.job_evaluator import JobEvaluator
from workers.model_worker import Prepared, Setting
from workers.policy import Policy
from workers.pool import Pool
from workers.progress import ProgressWriter
from workers.recorder import Recorder
from workers.retrying import retry_while_away

WAIT_FOR_CAPACITY_SECONDS = 10.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What all jobs of a coordinator share."""

    jobs: JobStore
    evaluations: EvaluationStore
    recorder: Recorder
    pool: Pool
    backend: WorkerBackend
    policy: Policy
    unprojected: Callable[[str], int] = lambda job_id: 0
    """Waits a moment for the dashboard to show all candidates of a job; how many it does not."""
    alone: Callable[[], bool] = lambda: True
    """Whether there is no other coordinator, which might have more room."""


@dataclass(frozen=True)
class End:
    """The state in which a job ends, with what belongs to it."""

    state: str
    details: Mapping[str, Any]
    """See :meth:`storage.jobs.JobStore.end`."""


class JobRun:
    """One coordinator's attempt at one job."""

    def __init__(self, job: Job, lease: Lease, tools: Tools) -> None:
        self.job = job
        self.lease = lease
        self.tools = tools
        self.evaluator = JobEvaluator(lease, tools.evaluations, tools.recorder, tools.pool, tools.backend)

    def persist(self, call: Callable[[], T]) -> T:
        """Read or write, however long the database is away."""
        return retry_while_away(call, lambda: self.evaluator.is_released)

    def wait(self, future: "Future[T]") -> T:
        """The result of a future, unless the job is stopped.

        Raises:
            JobStopped: it is.
        """
        while True:
            self.evaluator.check()
            try:
                return future.result(timeout=0.2)
            except FutureTimeoutError:
                if future.done():
                    raise

    def progress(self, budget: BudgetSpec) -> ProgressWriter:
        """What tells people of a search."""
        return ProgressWriter(self.lease, budget, self.tools.recorder, self.tools.pool, self.job.progress)

    def prepare(self, spec: JobSpec, say: Callable[[str], Any]) -> Prepared:
        """Have a worker load the model and read the documents; from now on candidates can be evaluated."""
        pool, pool_id = self.tools.pool, self.evaluator.pool_id
        pool.join(pool_id, spec.model, self.evaluator)
        say(f"loading {spec.model.id} and reading documents")
        prepared = self.wait(pool.prepare(pool_id, spec))
        self.evaluator.use(prepared, Setting.of(spec))
        return prepared

    def has_room(self, spec: JobSpec) -> bool:
        """Whether the job fits into what there is; if not, it is given back, to be claimed again later.

        Raises:
            CapacityError: this Ray does not grow, and there is no other coordinator.
        """
        missing = missing_capacity(spec, self.tools.backend.capacity())
        if missing is not None:
            self._wait_for_capacity(spec, missing)
        return missing is None

    def has_workers(self, spec: JobSpec, progress: ProgressWriter) -> bool:
        """Wait for workers that may still be coming up; as :meth:`has_room` if they do not fit any more."""
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
        """Back into the queue, until machines join or another coordinator has room; where neither can be, it fails."""
        if not self.tools.backend.grows and self.persist(self.tools.alone):
            raise CapacityError(missing)
        reason = None if self.job.progress.get("phase") == missing else missing  # said once, not every time it is tried
        if reason is not None:
            self.progress(spec.budget).phase(missing).result()
        give_back = self.tools.jobs.give_back
        self.persist(lambda: give_back(self.lease, wait_seconds=WAIT_FOR_CAPACITY_SECONDS, reason=reason))
