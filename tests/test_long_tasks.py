"""Long-running tasks: they report progress, are retried on other workers, and are ended at once."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from bench.stub import StubWorker
from bench.thread_backend import ThreadBackend
from factor_search.errors import FinetuneError
from factor_search.spec import ModelSpec
from storage.jobs import Lease
from tests.processes import wait_for
from tests.test_plan_checkpoint import awaiting
from workers.attempts import LongTaskError, PrepareTimeoutError
from workers.backend import WorkerGoneError, WorkerOutOfMemoryError
from workers.folder_lock import locked_folder
from workers.job_run import JobRun
from workers.long_task_run import drive_long_task
from workers.model_worker import LongTaskCall, ModelWorker, ReportProgress
from workers.pool import Pool
from workers.stage_task import waiting
from workers.tasks import LongTask

MODEL = ModelSpec(id="stub")


class Port:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append((kind, data))


@pytest.fixture
def backend() -> Iterator[ThreadBackend]:
    backend = ThreadBackend(StubWorker, 2)
    yield backend
    backend.close()


@pytest.fixture
def pool(backend: ThreadBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr("workers.pool.TICK_SECONDS", 0.02)
    monkeypatch.setattr("workers.pool.POLL_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("workers.pool.POLL_EVERY_SECONDS", 0.02)
    pool = Pool(backend)
    yield pool
    pool.close()


def test_a_supplied_checkpoint_on_a_slow_disk_is_looked_for_aside(checkpoint: Path) -> None:
    released, tools = threading.Event(), mock.Mock(prepare_seconds=0.5)
    tools.policy.check_supplied_checkpoint.side_effect = lambda folder: released.wait(5)
    spec = awaiting(checkpoint).model_dump(mode="json") | {"checkpoint": "m"}
    job: Any = SimpleNamespace(name="n", kind="await_checkpoint", plan_id=None, spec=spec)
    with pytest.raises(PrepareTimeoutError, match="looking for the files of the checkpoint took longer"):
        drive_long_task(JobRun(job, Lease("j", "c", 1), tools))
    released.set()


def begin(
    pool: Pool, call: LongTaskCall, on_progress: Callable[[dict[str, Any]], None] = lambda progress: None
) -> LongTask:
    long_task = LongTask(job_id="job:1", model=MODEL, call=call, on_progress=on_progress, result=Future())
    pool.join("job:1", MODEL, Port())  # type: ignore[arg-type]
    pool.submit([long_task])
    return long_task


def test_progress_is_reported_while_it_runs(pool: Pool) -> None:
    reported: list[int] = []

    def call(report_progress: ReportProgress) -> str:
        for step in range(1, 6):
            report_progress({"step": step})
            time.sleep(0.1)
        return "done"

    assert begin(pool, call, lambda progress: reported.append(progress["step"])).result.result(10) == "done"
    assert reported == sorted(set(reported))
    assert len(reported) >= 2


@pytest.mark.parametrize(
    ("error", "attempts", "outcome"),
    [
        (WorkerGoneError("its node is gone"), 3, "worker lost"),
        (WorkerOutOfMemoryError("the machine ran out of memory"), 2, "out of memory"),
        (MemoryError("it did not fit"), 2, "out of memory"),
        (RuntimeError("illegal memory access"), 2, "failed"),
    ],
)
def test_a_failing_task_ends_with_its_reason_after_some_attempts(
    pool: Pool, error: Exception, attempts: int, outcome: str
) -> None:
    begun: list[int] = []

    def call(report_progress: ReportProgress) -> None:
        begun.append(1)
        raise error

    with pytest.raises(LongTaskError, match=rf"after {attempts} attempts, the last one ended as {outcome}: {error}"):
        begin(pool, call).result.result(20)
    assert len(begun) == attempts


def test_an_error_that_users_can_fix_is_not_retried(pool: Pool) -> None:
    begun: list[int] = []

    def call(report_progress: ReportProgress) -> None:
        begun.append(1)
        raise FinetuneError("lower the learning rate")

    with pytest.raises(FinetuneError, match="lower the learning rate"):
        begin(pool, call).result.result(10)
    assert begun == [1]


def test_a_task_that_makes_progress_may_lose_any_number_of_workers(pool: Pool) -> None:
    begun: list[int] = []

    def call(report_progress: ReportProgress) -> int:
        begun.append(1)
        report_progress({"step": len(begun)})
        time.sleep(0.15)
        if len(begun) < 6:
            raise WorkerGoneError("its process died")
        return len(begun)

    assert begin(pool, call).result.result(30) == 6


def test_it_is_ended_at_once_with_its_worker(pool: Pool, backend: ThreadBackend) -> None:
    ended, begun = threading.Event(), threading.Event()

    def call(report_progress: ReportProgress) -> None:
        begun.set()
        try:
            while True:
                report_progress({"step": 1})
                time.sleep(0.02)
        finally:
            ended.set()

    long_task = begin(pool, call)
    assert begun.wait(10)
    pool.end(long_task).result(5)
    assert ended.wait(5)
    assert not long_task.result.done()
    again = begin(pool, lambda tell: "on another worker")
    assert again.result.result(10) == "on another worker"
    assert len(backend.started) == 3


def test_it_may_take_long_if_it_reports_progress(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attempts.SILENT_SECONDS", 0.4)

    def reporting(report_progress: ReportProgress) -> str:
        for step in range(6):
            report_progress({"step": step})
            time.sleep(0.15)
        return "done"

    assert begin(pool, reporting).result.result(10) == "done"
    with pytest.raises(LongTaskError, match=r"timed out: no progress report for 0\.4 s"):
        begin(pool, lambda tell: time.sleep(1.5)).result.result(20)


def test_a_worker_keeps_no_model_after_it() -> None:
    worker = ModelWorker()
    worker._loaded = object()  # type: ignore[assignment]
    seen: list[Any] = []

    def call(report_progress: ReportProgress) -> None:
        seen.append(worker._loaded)
        report_progress({"step": 1})
        seen.append(worker.progress())
        worker._loaded = object()  # type: ignore[assignment]

    worker.run_long_task(call)
    assert seen == [None, {"step": 1}]
    assert (worker._loaded, worker.progress()) == (None, None)


def test_tasks_of_several_jobs_share_the_workers(pool: Pool) -> None:
    done: list[str] = []

    def call(name: str) -> LongTaskCall:
        def work(report_progress: ReportProgress) -> None:
            time.sleep(0.1)
            done.append(name)

        return work

    for number in range(4):
        job = f"job:{number}"
        pool.join(job, MODEL, Port())  # type: ignore[arg-type]
        pool.submit(
            [LongTask(job_id=job, model=MODEL, call=call(job), on_progress=lambda progress: None, result=Future())]
        )
    wait_for(lambda: len(done) == 4)


def test_steps_are_reported_with_their_phase() -> None:
    """A short phase can end before the pool polls for it."""
    worker = ModelWorker()
    seen: list[Any] = []

    def call(report_progress: ReportProgress) -> None:
        for progress in ({"phase": "fine-tuning"}, {"step": 1, "loss": 2.0}, {"step": 2}, {"phase": "measuring"}):
            report_progress(progress)
            seen.append(worker.progress())

    worker.run_long_task(call)
    assert seen[1:] == [
        {"phase": "fine-tuning", "step": 1, "loss": 2.0},
        {"phase": "fine-tuning", "step": 2},
        {"phase": "measuring"},
    ]


def test_a_task_fails_if_no_worker_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker_slots.FAILED_STARTS", 2)

    class StillBorn(StubWorker):
        def name(self) -> str:
            raise WorkerGoneError("its process died")

    backend = ThreadBackend(StillBorn, 1)
    pool = Pool(backend)
    try:
        with pytest.raises(LongTaskError, match="no worker could be started: its process died"):
            begin(pool, lambda tell: None).result.result(20)
    finally:
        pool.close()
        backend.close()


def test_a_worker_waits_for_a_folder_that_another_one_uses(tmp_path: Path) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise KeyboardInterrupt

    with locked_folder(tmp_path / "work", lambda seconds: None):
        with pytest.raises(KeyboardInterrupt), locked_folder(tmp_path / "work", wait):
            raise AssertionError("two at once")
        assert 0 <= waited[0] < waited[1]
    with locked_folder(tmp_path / "work", lambda seconds: pytest.fail("the lock was not released")):
        pass
    assert waiting(100) == waiting(1500) == "waiting for another worker that does the same"
    assert waiting(5500).endswith("since 1.5 h"), (
        "a new report now and then, because a worker without reports counts as stuck"
    )
