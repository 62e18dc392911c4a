"""One job from its claim to its end, on a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

from factor_search.errors import FactorSearchError, one_line
from factor_search.geometry import Geometry
from factor_search.job import JobResult, compared_methods, search_and_measure
from factor_search.report import build_factors_file, build_report, ending
from factor_search.samples import PARTS
from factor_search.space import SearchSpace
from factor_search.spec import JobSpec
from storage.errors import DatabaseError, LeaseLostError
from storage.evaluations import EvaluationStore
from storage.jobs import CANCEL, PAUSE, Job, JobStore, Lease
from storage.schema import CANCELLED, FAILED, FINISHED, PAUSED
from workers.capacity import CapacityError, lacking
from workers.crew import Crew
from workers.job_evaluator import SHUTDOWN, JobEvaluator, JobStopped
from workers.model_worker import Prepared, Setting
from workers.patience import patiently
from workers.policy import Policy
from workers.pool import Pool
from workers.progress import ProgressWriter
from workers.recorder import Recorder

CLAIMS_IN_VAIN = 10
"""A job whose coordinator died so often before anything was recorded is not tried again."""
WAIT_FOR_CAPACITY_SECONDS = 10.0
PROJECTION_SECONDS = 300.0
"""The end of a job waits for the dashboard's study to be complete, but not longer."""

T = TypeVar("T")
_End = tuple[str, dict[str, Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What all jobs of a coordinator share."""

    jobs: JobStore
    evaluations: EvaluationStore
    recorder: Recorder
    pool: Pool
    crew: Crew
    policy: Policy
    unprojected: Callable[[str], int] = lambda job_id: 0
    """Waits a moment for the dashboard to show all candidates of a job; how many it does not."""
    alone: Callable[[], bool] = lambda: True
    """Whether there is no other coordinator, which might have more room."""


class Driver:
    """Drives one job; ends in a state of the job that says how."""

    def __init__(self, job: Job, lease: Lease, tools: Tools) -> None:
        """Start driving."""
        self.lease = lease
        self._job = job
        self._tools = tools
        self._evaluator = JobEvaluator(lease, tools.evaluations, tools.recorder, tools.pool, tools.crew)
        self._thread = threading.Thread(target=self._run, name=f"job-{lease.job_id}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it is still at work."""
        return self._thread.is_alive()

    def hear(self, request: str | None) -> None:
        """Obey what was asked of the job: pause, cancel, or None to go on."""
        if request is None:
            self._evaluator.carry_on()
        else:
            self._evaluator.stop(request)

    def stop(self, reason: str) -> None:
        """End driving: the lease is lost, or this coordinator shuts down."""
        self._evaluator.stop(reason)

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            end = self._outcome()
            if end is not None:
                state, details = end
                self._persist(lambda: self._tools.jobs.end(self.lease, state, **details))
        except LeaseLostError as error:
            logger.warning("%s", error)
        except DatabaseError as error:
            logger.error("job %s is left as it is: %s", self.lease.job_id, error)
        except Exception:
            logger.exception("job %s is left as it is", self.lease.job_id)
        finally:
            self._tools.pool.leave(self._evaluator.pool_id)

    def _outcome(self) -> _End | None:
        """The state in which the job ends, with what belongs to it; None if it was given back.

        Raises:
            LeaseLostError: it is somebody else's.
            DatabaseError: the database is away, and this coordinator shuts down.
        """
        try:
            return self._drive()
        except JobStopped as stop:
            if stop.reason == SHUTDOWN:
                self._tools.jobs.give_back(self.lease, reason="its coordinator shuts down")
            return {PAUSE: (PAUSED, {}), CANCEL: (CANCELLED, {})}.get(stop.reason)
        except (LeaseLostError, DatabaseError):
            raise
        except FactorSearchError as error:
            logger.info("job %s failed: %s", self.lease.job_id, error)
            return FAILED, {"error": str(error)}
        except Exception as error:
            logger.exception("job %s met with an internal error", self.lease.job_id)
            return FAILED, {"error": f"internal error: {type(error).__name__}: {one_line(error)}"}

    def _drive(self) -> _End | None:
        tools = self._tools
        self.hear(self._job.request)
        self._evaluator.check()
        if self._job.claims_in_vain > CLAIMS_IN_VAIN:
            times = self._job.claims_in_vain - 1
            return FAILED, {"error": f"its coordinator died {times} times before anything of it was recorded"}
        spec = self._job.parse_spec()
        tools.policy.check(spec)
        lack = lacking(spec, tools.crew.capacity())
        if lack is not None:
            self._wait_for_capacity(spec, lack)
            return None
        pool_id = self._evaluator.pool_id
        tools.pool.join(pool_id, spec.model, self._evaluator)
        progress = self._progress(spec)
        progress.phase(f"loading {spec.model.id} and reading documents")
        prepared = self._wait(tools.pool.prepare(pool_id, spec))
        self._evaluator.use(prepared, Setting.of(spec))
        self._start_stage(spec, prepared)
        lack = self._wait_for_workers(spec, progress)
        if lack is not None:
            self._wait_for_capacity(spec, lack)
            return None
        result = search_and_measure(spec, prepared.geometry, prepared.samples, self._evaluator, progress.watcher())
        return FINISHED, self._conclude(result, progress)

    def _wait_for_capacity(self, spec: JobSpec, lack: str) -> None:
        """Back into the queue, until machines join or another coordinator has room; where neither can be, it fails.

        Raises:
            CapacityError: this Ray does not grow, and there is no other coordinator.
        """
        if not self._tools.crew.grows and self._persist(self._tools.alone):
            raise CapacityError(lack)
        news = None if self._job.progress.get("phase") == lack else lack  # said once, not every time it is tried
        if news is not None:
            self._progress(spec).phase(lack).result()
        give_back = self._tools.jobs.give_back
        self._persist(lambda: give_back(self.lease, wait_seconds=WAIT_FOR_CAPACITY_SECONDS, reason=news))

    def _wait_for_workers(self, spec: JobSpec, progress: ProgressWriter) -> str | None:
        """Those that fit may still be coming up; returns what the job lacks, if they do not fit any more."""
        least, pool = spec.resources.workers, self._tools.pool
        if pool.status()["alive"] < least:
            progress.phase(f"waiting for {least} worker{'s' * (least > 1)}")
        while pool.status()["alive"] < least:
            self._evaluator.check()
            lack = lacking(spec, self._tools.crew.capacity())
            if lack is not None:
                return lack
            time.sleep(0.5)
        return None

    def _conclude(self, result: JobResult, progress: ProgressWriter) -> dict[str, Any]:
        progress.phase("writing the report")
        report, factors = build_report(result), build_factors_file(result).as_json()
        self._persist(lambda: self._tools.evaluations.end_stage(self.lease, 0))
        self._await_projection()
        self._wait(progress.finish())
        found = {"winner": report["winner"], "perplexity": factors["perplexity"]["held_out"], "ended": ending(report)}
        return {"report": report, "factors": factors, "data": found}

    def _await_projection(self) -> None:
        """The dashboard's study is complete when the job says it is finished."""
        until = time.monotonic() + PROJECTION_SECONDS
        while (left := self._tools.unprojected(self.lease.job_id)) != 0:
            self._evaluator.check()
            if time.monotonic() > until:
                self._evaluator.event("projection_late", {"candidates": left})
                return

    def _start_stage(self, spec: JobSpec, prepared: Prepared) -> None:
        document = _describe(spec, prepared)
        study = f"{spec.name} · {self.lease.job_id}"
        start = self._tools.evaluations.start_stage
        self._persist(lambda: start(self.lease, 0, spec.target_length, study, document))

    def _progress(self, spec: JobSpec) -> ProgressWriter:
        return ProgressWriter(self.lease, spec.budget, self._tools.recorder, self._tools.pool, self._job.progress)

    def _persist(self, call: Callable[[], T]) -> T:
        return patiently(call, lambda: self._evaluator.out_of_our_hands)

    def _wait(self, future: "Future[T]") -> T:
        while True:
            self._evaluator.check()
            try:
                return future.result(timeout=0.2)
            except FutureTimeoutError:
                if future.done():
                    raise


def _describe(spec: JobSpec, prepared: Prepared) -> dict[str, Any]:
    """What figures of a stage are drawn of."""
    geometry, samples = prepared.geometry, prepared.samples
    space = SearchSpace.of(spec, geometry)
    forms = compared_methods(spec, geometry)
    return {
        "geometry": _geometry(geometry),
        "closed_forms": {name: factors.as_json() for name, factors in forms.items()},
        "documents": {part: [sample.source for sample in getattr(samples, part).samples] for part in PARTS},
        "space": {
            "initial_tokens": list(space.initial_tokens),
            "attention_factors": list(space.attention_factors),
            "lower": 1.0,
            "upper": 1.0 + space.step * space.top_level,
        },
    }


def _geometry(geometry: Geometry) -> dict[str, Any]:
    return {
        "architecture": geometry.architecture,
        "pairs": geometry.pairs,
        "rotary_dim": geometry.rotary_dim,
        "original_length": geometry.original_length,
        "wavelengths": geometry.wavelengths,
        "critical_dimension": geometry.critical_dimension,
    }
