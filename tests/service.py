"""Coordinators in this process, with threads as workers that fail where a test wants it."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from bench.stub import PREPARED, StubEvaluator, StubWorker
from bench.thread_backend import ThreadBackend
from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.report.document import build_factors_file
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobWatcher, search_and_measure
from factor_search.spec import JobSpec
from storage.database import Database
from storage.evaluations import EvaluationStore
from storage.events import read_events
from storage.jobs import JobStore
from workers.coordinator import Coordinator
from workers.model_worker import Setting
from workers.policy import Policy

ANYTHING = Policy((Path("/"),), allow_hub=True, allow_remote_code=True)
LEASE_SECONDS = 1.5
WAITS = {"workers.coordinator.ROUND_SECONDS": 0.1, "workers.pool.TICK_SECONDS": 0.05}
"""Shorter than in a service, since tests wait for many rounds."""


class Faults:
    """Failures by the number of started evaluations; shared by all workers of a test."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun: Counter[str] = Counter()
        self.at: dict[int, Callable[[], None]] = {}
        self.always: Callable[[Factors], str | None] = lambda factors: None
        self.seconds = 0.002


class FaultyWorker(StubWorker):
    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
        with self._faults.lock:
            number = sum(self._faults.begun.values())
            self._faults.begun[factors.sha256 + samples_sha256] += 1
            fault = self._faults.at.pop(number, None)
        if fault is not None:
            fault()
        time.sleep(self._faults.seconds * random.random())
        evaluation = super().evaluate(setting, factors, samples_sha256, **race)
        outcome = self._faults.always(factors)
        if outcome is not None:
            key = super().evaluate(setting, factors, samples_sha256).key
            return Evaluation(key, factors, evaluation.part, outcome, (), (), {}, 0.0)
        return evaluation


class Service:
    """Coordinators on one database, each with threads as workers."""

    def __init__(self, url: str, work_folder: Path | None = None) -> None:
        self.policy = replace(ANYTHING, work_folder=work_folder)
        self.database = Database(url)
        self.jobs = JobStore(self.database)
        self.faults = Faults()
        self.running: list[tuple[Coordinator, threading.Thread, ThreadBackend]] = []
        self._shorter_waits = contextlib.ExitStack()

    def start(self, workers: int = 4, make: Callable[[], StubWorker] | None = None, **options: float) -> Coordinator:
        if not self.running:
            for name, seconds in WAITS.items():
                self._shorter_waits.enter_context(mock.patch(name, seconds))
        backend = ThreadBackend(make or (lambda: FaultyWorker(self.faults)), workers)
        coordinator = Coordinator(
            self.database,
            backend,
            policy=self.policy,
            **{"lease_seconds": LEASE_SECONDS} | options,  # type: ignore[arg-type]
        )
        thread = threading.Thread(target=coordinator.run, daemon=True)
        thread.start()
        self.running.append((coordinator, thread, backend))
        return coordinator

    def stop(self) -> None:
        for coordinator, thread, backend in self.running:
            coordinator.shut_down()
            thread.join(20)
            assert not thread.is_alive()
            backend.close()
        self.running.clear()
        self._shorter_waits.close()

    def wait(self, job_id: str, *states: str, seconds: float = 30.0) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job = self.jobs.get(job_id)
            if job.state in (states or ("finished", "failed", "cancelled")):
                return job.state
            time.sleep(0.02)
        raise AssertionError(f"still {job.state}: {job.progress} {job.error} {self.kinds(job_id)}")

    def candidates(self, job_id: str, at_least: int, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        store = EvaluationStore(self.database)
        while sum(row.state == "done" for row in store.of_job(job_id, limit=1000)) < at_least:
            assert time.monotonic() < until
            time.sleep(0.01)

    def kinds(self, job_id: str) -> list[str]:
        return [event.kind for event in read_events(self.database, job_id)]

    def factors(self, job_id: str) -> dict[str, object]:
        document = self.jobs.document(job_id, "factors")
        assert document is not None, self.jobs.get(job_id).error
        return {key: value for key, value in document.items() if key != "sha256"}


def undisturbed(spec: JobSpec) -> dict[str, object]:
    """The factors file of the same search in one process."""
    result = search_and_measure(
        SearchProblem.of(spec, PREPARED.geometry), PREPARED.samples, StubEvaluator(), JobWatcher()
    )
    document = build_factors_file(result).as_json()
    return {key: value for key, value in document.items() if key != "sha256"}
