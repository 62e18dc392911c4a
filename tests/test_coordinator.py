"""Jobs driven by coordinators with workers that are threads: no job may know how often anything died."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.stub import PREPARED, StubEvaluator, StubWorker, stub_spec
from factor_search.errors import DataError
from factor_search.evaluation import DIVERGED, OK, OUT_OF_MEMORY, TIMED_OUT, WORKER_LOST, Evaluation
from factor_search.factors import Factors
from factor_search.job import JobWatcher, search_and_measure
from factor_search.report import build_factors_file
from factor_search.spec import JobSpec
from storage.database import Database
from storage.evaluations import EvaluationStore
from storage.events import read_events
from storage.jobs import JobStore
from workers.coordinator import Coordinator
from workers.model_worker import Prepared, Setting
from workers.policy import Policy
from workers.thread_crew import ThreadCrew

ANYTHING = Policy((Path("/"),), allow_hub=True, allow_remote_code=True)
LEASE_SECONDS = 1.5


class Faults:
    """What shall go wrong, by the count of evaluations begun; shared by all workers of a test."""

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

    def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str) -> Evaluation:
        with self._faults.lock:
            number = sum(self._faults.begun.values())
            self._faults.begun[factors.sha256 + samples_sha256] += 1
            fault = self._faults.at.pop(number, None)
        if fault is not None:
            fault()
        time.sleep(self._faults.seconds * random.random())
        evaluation = super().evaluate(setting, factors, samples_sha256)
        outcome = self._faults.always(factors)
        if outcome is not None:
            return Evaluation(evaluation.key, factors, evaluation.part, outcome, (), (), {}, 0.0)
        return evaluation


class Service:
    """Coordinators on one database, each with a crew of threads."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.jobs = JobStore(self.database)
        self.faults = Faults()
        self.running: list[tuple[Coordinator, threading.Thread, ThreadCrew]] = []

    def start(self, workers: int = 4, make: Callable[[], StubWorker] | None = None, **options: float) -> Coordinator:
        crew = ThreadCrew(make or (lambda: FaultyWorker(self.faults)), workers)
        coordinator = Coordinator(
            self.database,
            crew,
            policy=ANYTHING,
            lease_seconds=LEASE_SECONDS,
            **options,  # type: ignore[arg-type]
        )
        thread = threading.Thread(target=coordinator.run, daemon=True)
        thread.start()
        self.running.append((coordinator, thread, crew))
        return coordinator

    def stop(self) -> None:
        for coordinator, thread, crew in self.running:
            coordinator.shut_down()
            thread.join(20)
            assert not thread.is_alive()
            crew.close()
        self.running.clear()

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


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(f"sqlite:///{tmp_path / 'jobs.db'}")
    yield service
    service.stop()
    service.database.close()


def undisturbed(spec: JobSpec) -> dict[str, object]:
    """The factors file of the same search in one process."""
    result = search_and_measure(spec, PREPARED.geometry, PREPARED.samples, StubEvaluator(), JobWatcher())
    document = build_factors_file(result).as_json()
    return {key: value for key, value in document.items() if key != "sha256"}


def test_a_job_gives_what_its_twin_in_one_process_gives(service: Service) -> None:
    spec = stub_spec(budget=150)
    service.start()
    job, _ = service.jobs.submit(spec)
    assert service.wait(job.id) == "finished"
    assert service.factors(job.id) == undisturbed(spec)
    report = service.jobs.document(job.id, "report")
    assert report is not None
    assert report["search"]["candidates"] == 150
    rows = EvaluationStore(service.database).of_job(job.id, limit=1000)
    assert [row.number for row in rows] == list(range(150))
    assert {row.state for row in rows} == {"done"}
    assert max(service.faults.begun.values()) == 1
    kinds = service.kinds(job.id)
    assert (kinds[0], kinds[-1]) == ("submitted", "finished")


def test_another_job_takes_over_what_is_known(service: Service) -> None:
    service.start()
    first, _ = service.jobs.submit(stub_spec(budget=80))
    service.wait(first.id)
    second, _ = service.jobs.submit(stub_spec(name="stub", budget=100))
    service.wait(second.id)
    assert max(service.faults.begun.values()) == 1
    rows = EvaluationStore(service.database).of_job(second.id, limit=1000)
    assert sum(row.reused for row in rows) == 80
    assert service.factors(second.id) == undisturbed(stub_spec(budget=100))


def test_several_jobs_at_once(service: Service) -> None:
    specs = [stub_spec(name=f"job {seed}", seed=seed, budget=60) for seed in range(6)]
    ids = [service.jobs.submit(spec)[0].id for spec in specs]
    service.start(jobs=3)
    for job_id, spec in zip(ids, specs, strict=True):
        assert service.wait(job_id) == "finished"
        assert service.factors(job_id) == undisturbed(spec)


def test_pause_stops_at_a_candidate_and_resume_goes_on(service: Service) -> None:
    service.faults.seconds = 0.05
    spec = stub_spec(budget=120)
    service.start(workers=2)
    job, _ = service.jobs.submit(spec)
    service.candidates(job.id, 5)
    service.jobs.pause(job.id)
    assert service.wait(job.id, "paused") == "paused"
    rows = EvaluationStore(service.database).of_job(job.id, limit=1000)
    assert {row.state for row in rows} == {"done"}  # what was begun came to its end
    begun = service.faults.begun.total()
    time.sleep(0.3)
    assert service.faults.begun.total() == begun
    service.faults.seconds = 0.002
    service.jobs.resume(job.id)
    assert service.wait(job.id) == "finished"
    assert service.factors(job.id) == undisturbed(spec)
    assert max(service.faults.begun.values()) == 1


def test_cancel_does_not_wait(service: Service) -> None:
    service.faults.seconds = 30.0
    service.start(workers=2)
    job, _ = service.jobs.submit(stub_spec())
    while service.faults.begun.total() < 2:
        time.sleep(0.01)
    service.jobs.cancel(job.id)
    assert service.wait(job.id, seconds=5) == "cancelled"
    rows = EvaluationStore(service.database).of_job(job.id)
    assert {row.state for row in rows} <= {"withdrawn"}


def test_a_resume_while_the_job_comes_to_a_pause_counts(service: Service) -> None:
    service.faults.seconds = 0.3
    spec = stub_spec(budget=30)
    service.start(workers=2)
    job, _ = service.jobs.submit(spec)
    service.candidates(job.id, 1)
    service.jobs.pause(job.id)
    time.sleep(0.6)
    service.jobs.resume(job.id)
    service.faults.seconds = 0.002
    assert service.wait(job.id) == "finished"


def kill_worker(service: Service) -> None:
    victim = random.choice([worker for worker in service.running[0][2].hired if not worker._gone])
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
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str) -> Evaluation:
            if factors == doomed and PREPARED.samples.search.sha256 == samples_sha256:
                current = threading.current_thread()
                for worker in service.running[0][2].hired:
                    if worker._thread is current:
                        worker.kill()
            return super().evaluate(setting, factors, samples_sha256)

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
        search_and_measure(spec, PREPARED.geometry, PREPARED.samples, self, JobWatcher())

    def evaluate_all(self, candidates, part):  # type: ignore[no-untyped-def]
        self.proposed.extend(candidates)
        return super().evaluate_all(candidates, part)


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
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str) -> Evaluation:
            if factors == doomed:
                time.sleep(60)
            return super().evaluate(setting, factors, samples_sha256)

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
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str) -> Evaluation:
            if factors == doomed:
                raise RuntimeError("CUDA error: an illegal memory access")
            return super().evaluate(setting, factors, samples_sha256)

    service.start(make=lambda: Wrong(service.faults))
    job, _ = service.jobs.submit(spec)
    assert service.wait(job.id, seconds=60) == "finished"
    row = EvaluationStore(service.database).of_job(job.id, limit=1000)[4]
    assert row.evaluation is not None
    assert (row.evaluation.outcome, row.error) == ("failed", "CUDA error: an illegal memory access")


def test_a_search_of_which_every_candidate_fails_says_how(service: Service) -> None:
    service.faults.always = lambda factors: DIVERGED
    service.start()
    job, _ = service.jobs.submit(stub_spec(budget=30))
    assert service.wait(job.id) == "failed"
    assert "30 diverged" in str(service.jobs.get(job.id).error)


def test_workers_that_fail_at_everything_end_the_job_soon(service: Service) -> None:
    class Broken(StubWorker):
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str) -> Evaluation:
            raise RuntimeError("no kernel image is available")

    service.start(make=Broken)
    job, _ = service.jobs.submit(stub_spec())
    assert service.wait(job.id, seconds=60) == "failed"
    assert "5 candidates in a row" in str(service.jobs.get(job.id).error)
    assert "no kernel image" in str(service.jobs.get(job.id).error)


def test_a_job_that_cannot_be_prepared_fails_with_the_reason(service: Service) -> None:
    class NoData(StubWorker):
        def prepare(self, spec: JobSpec) -> Prepared:
            raise DataError("there are no documents")

    service.start(make=NoData)
    job, _ = service.jobs.submit(stub_spec())
    assert service.wait(job.id) == "failed"
    assert service.jobs.get(job.id).error == "there are no documents"


def test_a_worker_that_dies_of_every_preparation_ends_the_job(service: Service) -> None:
    class Dying(StubWorker):
        def prepare(self, spec: JobSpec) -> Prepared:
            for worker in service.running[0][2].hired:
                if worker._thread is threading.current_thread():
                    worker.kill()
            return super().prepare(spec)

    service.start(make=Dying)
    job, _ = service.jobs.submit(stub_spec())
    assert service.wait(job.id, seconds=60) == "failed"
    assert "after 3 attempts" in str(service.jobs.get(job.id).error)


def test_a_job_that_needs_more_than_there_is(service: Service) -> None:
    service.start(workers=2)
    needs = [
        ({"gpus": 1.0, "workers": 2}, "needs 2 GPUs, the cluster has 0"),
        ({"workers": 3}, "needs 3 workers, the cluster has room for 2"),
    ]
    for resources, message in needs:
        job, _ = service.jobs.submit(stub_spec(resources=resources))
        assert service.wait(job.id) == "failed"
        assert message in str(service.jobs.get(job.id).error)


def test_where_machines_may_join_such_a_job_waits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadCrew, "grows", True)
    monkeypatch.setattr("workers.driver.WAIT_FOR_CAPACITY_SECONDS", 0.2)
    service.start(workers=2)
    spec = stub_spec(resources={"workers": 3}, budget=20)
    job, _ = service.jobs.submit(spec)
    while "waiting" not in service.kinds(job.id):
        time.sleep(0.05)
    assert "room for 2" in service.jobs.get(job.id).progress["phase"]
    time.sleep(1.0)
    service.running[0][2]._workers = 3
    assert service.wait(job.id) == "finished"
    assert Counter(service.kinds(job.id))["waiting"] == 1  # said once, however often it was tried


def test_a_coordinator_that_falls_silent_is_replaced(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.faults.seconds = 0.1
    spec = stub_spec(budget=150)
    silent = service.start(workers=2)
    job, _ = service.jobs.submit(spec)
    service.candidates(job.id, 20)
    monkeypatch.setattr(silent, "_round", lambda: None)  # keeps no lease any more, but works on
    service.start(workers=2)
    assert service.wait(job.id) == "finished"
    assert service.factors(job.id) == undisturbed(spec)
    claims = [event.data for event in read_events(service.database, job.id) if event.kind == "claimed"]
    assert [claim["attempt"] for claim in claims] == [1, 2]
    rows = EvaluationStore(service.database).of_job(job.id, limit=1000)
    assert [(row.number, row.state) for row in rows] == [(n, "done") for n in range(150)]


def test_two_coordinators_never_drive_the_same_job(service: Service) -> None:
    specs = [stub_spec(name=f"job {seed}", seed=seed, budget=40) for seed in range(8)]
    service.start(workers=2, jobs=2)
    service.start(workers=2, jobs=2)
    ids = [service.jobs.submit(spec)[0].id for spec in specs]
    for job_id, spec in zip(ids, specs, strict=True):
        assert service.wait(job_id, seconds=60) == "finished"
        assert service.factors(job_id) == undisturbed(spec)
        assert Counter(service.kinds(job_id))["claimed"] == 1
    owners = {service.jobs.get(job_id).owner for job_id in ids}
    assert len(owners) == 2


def test_a_shutdown_gives_jobs_back_at_once(service: Service) -> None:
    service.faults.seconds = 0.05
    spec = stub_spec(budget=100)
    service.start(workers=2)
    job, _ = service.jobs.submit(spec)
    service.candidates(job.id, 10)
    service.stop()
    assert service.jobs.get(job.id).state == "queued"
    service.faults.seconds = 0.002
    service.start(workers=2)
    assert service.wait(job.id) == "finished"
    assert service.factors(job.id) == undisturbed(spec)


def test_a_job_that_fells_every_coordinator_ends(service: Service) -> None:
    job, _ = service.jobs.submit(stub_spec())
    for n in range(10):
        assert service.jobs.claim(f"felled {n}", -1) is not None
    service.start()
    assert service.wait(job.id) == "failed"
    assert "died 10 times" in str(service.jobs.get(job.id).error)


def test_a_budget_of_seconds_withdraws_what_was_begun_too_much(service: Service) -> None:
    service.faults.seconds = 0.05
    service.start(workers=4, make=lambda: Slow(service.faults))
    job, _ = service.jobs.submit(stub_spec(budget={"candidates": None, "seconds": 1.0}))
    assert service.wait(job.id) == "finished"
    report = service.jobs.document(job.id, "report")
    assert report is not None
    assert (report["search"]["ended_by"], report["search"]["candidates"]) == ("seconds", 8)
    rows = EvaluationStore(service.database).of_job(job.id, limit=1000)
    assert all(row.state == "done" for row in rows[:8])
    assert {row.state for row in rows[8:]} <= {"done", "withdrawn"}


class Slow(FaultyWorker):
    """Says that each evaluation took an eighth of a second."""

    def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str) -> Evaluation:
        evaluation = super().evaluate(setting, factors, samples_sha256)
        return Evaluation(**vars(evaluation) | {"seconds": 0.125, "outcome": OK})
