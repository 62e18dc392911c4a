"""The coordinator: claims jobs, renews their leases, applies requests to them, runs several at once."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from factor_search.errors import FactorSearchError
from storage.coordinators import CoordinatorStore
from storage.database import Database
from storage.deliveries import DeliveryStore
from storage.errors import DatabaseError
from storage.evaluations import EvaluationStore
from storage.jobs import JobStore, Lease
from storage.plan_steps import PlanSteps
from workers.attempts import PREPARE_SECONDS
from workers.backend import WorkerBackend
from workers.driver import Driver
from workers.job_evaluator import LEASE_LOST, SHUTDOWN
from workers.job_run import Tools
from workers.plan_scheduler import PlanScheduler
from workers.policy import Policy
from workers.pool import Pool
from workers.recorder import Recorder
from workers.webhooks import sending

ROUND_SECONDS = 0.5
REPORT_SECONDS = 5.0
SHUTDOWN_SECONDS = 8.0
SILENT_SECONDS = 30.0

logger = logging.getLogger(__name__)


class Coordinator:
    """Runs jobs of one database on one worker backend; any number of coordinators may share the database."""

    def __init__(
        self,
        database: Database,
        backend: WorkerBackend,
        *,
        policy: Policy,
        jobs: int = 4,
        lease_seconds: float = 10.0,
        evaluation_timeout: float | None = None,
        prepare_seconds: float = PREPARE_SECONDS,
        unprojected: Callable[[str], int] = lambda job_id: 0,
        webhook_secret: bytes | None = None,
        owner: str | None = None,
    ) -> None:
        """Get ready.

        Args:
            database: holds the jobs and receives the results.
            backend: runs the workers.
            policy: what the operator allows jobs to read.
            jobs: how many jobs run at once at most.
            lease_seconds: without a renewal for this long, another coordinator takes over a job.
            evaluation_timeout: seconds after which the evaluation of a candidate is ended.
            prepare_seconds: seconds after which reading a job's documents, or loading its model, is ended.
            unprojected: waits briefly for the dashboard and returns how many candidates of a job it does not show yet.
            webhook_secret: signs webhooks; None sends none.
            owner: this coordinator's id.
        """
        self.owner = owner or new_owner()
        self._database = database
        self._backend = backend
        self._jobs = jobs
        self._lease_seconds = lease_seconds
        self._store = JobStore(database)
        self._coordinators = CoordinatorStore(database)
        evaluations = EvaluationStore(database)
        self._recorder = Recorder(evaluations)
        self._pool = Pool(backend, evaluation_timeout=evaluation_timeout, prepare_seconds=prepare_seconds)
        self._tools = Tools(
            jobs=self._store,
            evaluations=evaluations,
            recorder=self._recorder,
            pool=self._pool,
            backend=backend,
            policy=policy,
            unprojected=unprojected,
            prepare_seconds=prepare_seconds,
            alone=self._alone,
        )
        self._plans = PlanScheduler(PlanSteps(database), policy, prepare_seconds)
        self._send_webhooks = sending(DeliveryStore(database), policy.webhook_hosts, webhook_secret)
        self._drivers: dict[Lease, Driver] = {}
        self._reported_at = -1e9
        self._logged_no_room = False
        self._shutdown = threading.Event()

    def shut_down(self) -> None:
        """Make :meth:`run` return; may be called from any thread or a signal handler."""
        self._shutdown.set()

    def run(self) -> None:
        """Work until :meth:`shut_down` is called; then return the jobs to the queue."""
        plans = threading.Thread(target=self._repeat, args=(self._plans.round,), name="plans", daemon=True)
        plans.start()
        if self._send_webhooks is not None:
            threading.Thread(target=self._repeat, args=(self._send_webhooks,), name="webhooks", daemon=True).start()
        self._repeat(lambda: self._round())
        self._end()
        plans.join(SHUTDOWN_SECONDS)

    def _repeat(self, a_round: Callable[[], None]) -> None:
        while not self._shutdown.is_set():
            try:
                a_round()
            except FactorSearchError as error:
                logger.warning("%s; trying again", error)
                self._shutdown.wait(1.0)
            except Exception:
                logger.exception("internal error in the coordinator, which continues")
                self._shutdown.wait(1.0)
            self._shutdown.wait(ROUND_SECONDS)

    def _round(self) -> None:
        self._drivers = {lease: driver for lease, driver in self._drivers.items() if driver.alive}
        self._renew_leases()
        while len(self._drivers) < self._jobs and self._has_room() and not self._shutdown.is_set():
            claim = self._store.claim(self.owner, self._lease_seconds)
            if claim is None:
                break
            job, lease = claim
            claimed = {
                "event": "claimed",
                "job": job.id,
                "kind": job.kind,
                "plan": job.plan_id,
                "attempt": lease.attempt,
            }
            logger.info("claimed job %s (attempt %d)", job.id, lease.attempt, extra=claimed)
            self._drivers[lease] = Driver(job, lease, self._tools)
        now = time.monotonic()
        if now - self._reported_at > REPORT_SECONDS:
            self._reported_at = now
            self._report()

    def _has_room(self) -> bool:
        """Whether a worker fits; a coordinator without workers leaves jobs to the others."""
        if self._backend.capacity().workers > 0:
            return True
        if not self._logged_no_room:
            logger.error(
                "no worker fits into this cluster, so this coordinator claims no jobs: %s", self._backend.capacity()
            )
        self._logged_no_room = True
        return False

    def _alone(self) -> bool:
        """Whether no other coordinator is alive."""
        if self._store.clock.stepped_within(SILENT_SECONDS):
            return False  # all look silent until they have reported again
        others = (other for other in self._coordinators.list() if other.id != self.owner)
        return all(other.silent_seconds > SILENT_SECONDS for other in others)

    def _renew_leases(self) -> None:
        if not self._drivers:
            return
        held = self._store.renew(self._drivers.keys(), self._lease_seconds)
        for lease, driver in self._drivers.items():
            if not driver.alive:
                continue
            if lease in held:
                driver.apply_request(held[lease])
            else:
                driver.stop(LEASE_LOST)

    def _report(self) -> None:
        capacity, status = self._backend.capacity(), self._pool.status()
        self._coordinators.report(
            self.owner,
            socket.gethostname(),
            os.getpid(),
            {
                "workers": capacity.workers,
                "alive": status["alive"],
                "busy": status["busy"],
                "waiting": status["waiting"],
                "cpus": capacity.cpus,
                "gpus": capacity.gpus,
                "nodes": capacity.nodes,
                "memory": capacity.memory,
                "memory_each": capacity.memory_each,
                "workers_each_gpu": capacity.workers_each_gpu,
                "jobs": len(self._drivers),
            },
        )

    def _end(self) -> None:
        """Return the jobs to the queue at once, so that others need not wait until their leases expire."""
        for driver in self._drivers.values():
            driver.stop(SHUTDOWN)
        until = time.monotonic() + SHUTDOWN_SECONDS
        for driver in self._drivers.values():
            driver.join(max(0.0, until - time.monotonic()))
        self._recorder.close()
        self._pool.close()
        try:
            self._coordinators.leave(self.owner)
        except DatabaseError as error:
            logger.warning("%s", error)


def new_owner() -> str:
    """A unique id, also among coordinators that have the same process id later."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
