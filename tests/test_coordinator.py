"""Jobs from submission to end: claimed, paused, resumed, cancelled, taken over, always with the same result."""

import time
from collections import Counter
from typing import Any

import pytest

from bench.stub import stub_spec
from bench.thread_backend import ThreadBackend
from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, Evaluation
from storage.evaluations import Batch, EvaluationStore, Recorded
from storage.events import read_events
from storage.jobs import Lease
from tests.service import FaultyWorker, Service, undisturbed
from workers.driver import Driver
from workers.model_worker import Setting


def test_a_job_has_the_result_of_a_search_in_one_process(service: Service) -> None:
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


def test_another_job_reuses_stored_evaluations(service: Service) -> None:
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


def test_pause_waits_for_started_candidates_and_resume_continues(service: Service) -> None:
    service.faults.seconds = 0.05
    spec = stub_spec(budget=120)
    service.start(workers=2)
    job, _ = service.jobs.submit(spec)
    service.candidates(job.id, 5)
    service.jobs.pause(job.id)
    assert service.wait(job.id, "paused") == "paused"
    rows = EvaluationStore(service.database).of_job(job.id, limit=1000)
    assert {row.state for row in rows} == {"done"}  # what was started was finished
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


def test_a_resume_takes_effect_while_a_pause_is_pending(service: Service) -> None:
    service.faults.seconds = 0.3
    spec = stub_spec(budget=30)
    service.start(workers=2)
    job, _ = service.jobs.submit(spec)
    service.candidates(job.id, 1)
    service.jobs.pause(job.id)
    time.sleep(0.15)  # the pause is seen, while candidates are still in progress
    service.jobs.resume(job.id)
    service.faults.seconds = 0.002
    assert service.wait(job.id) == "finished"


def test_a_job_that_needs_more_than_there_is_fails(service: Service) -> None:
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
    monkeypatch.setattr(ThreadBackend, "grows", True)
    monkeypatch.setattr("workers.job_run.WAIT_FOR_CAPACITY_SECONDS", 0.2)
    service.start(workers=2)
    spec = stub_spec(resources={"workers": 3}, budget=20)
    job, _ = service.jobs.submit(spec)
    while "waiting" not in service.kinds(job.id):
        time.sleep(0.05)
    assert "room for 2" in service.jobs.get(job.id).progress["phase"]
    time.sleep(0.7)
    service.running[0][2]._workers = 3
    assert service.wait(job.id) == "finished"
    assert Counter(service.kinds(job.id))["waiting"] == 1  # reported once, however often it was tried


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


@pytest.mark.parametrize(("times", "state"), [(1, "finished"), (2, "failed")])
def test_a_job_that_kills_its_coordinator_twice_fails(service: Service, times: int, state: str) -> None:
    job, _ = service.jobs.submit(stub_spec(budget=20))
    for n in range(times):
        claim = service.jobs.claim(f"felled {n}", -1)
        assert claim is not None
        EvaluationStore(service.database).record({claim[1]: Batch(progress={"phase": "loading"})})
    service.start()
    assert service.wait(job.id) == state
    reason = "died 2 times in a row before it recorded anything, the last time while loading: see"
    assert (reason in str(service.jobs.get(job.id).error)) == (state == "failed")


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

    def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
        evaluation = super().evaluate(setting, factors, samples_sha256, **race)
        return Evaluation(**vars(evaluation) | {"seconds": 0.125, "outcome": OK})


def test_a_search_that_only_reuses_evaluations_can_be_cancelled(service: Service) -> None:
    service.start()
    first, _ = service.jobs.submit(stub_spec(budget=100))
    service.wait(first.id)
    service.stop()
    second, _ = service.jobs.submit(stub_spec(budget=100))
    claimed = service.jobs.claim("dead", -1)
    assert claimed is not None
    _, lease = claimed
    service.jobs.renew([lease], 60)
    service.jobs.cancel(second.id)
    service.jobs.renew([lease], -1)  # its coordinator is gone before it could do so
    service.start()
    assert service.wait(second.id) == "cancelled"


def test_a_job_whose_driver_is_gone_is_taken_up_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.faults.seconds = 0.05
    other, _ = service.jobs.submit(stub_spec(name="other", seed=1, budget=300))
    spec = stub_spec(budget=60)
    ends = iter([True])

    def fail_once(driver: Driver) -> None:
        if driver.lease.job_id == job.id and next(ends, False):
            raise RuntimeError("the driver's thread died")
        return original(driver)

    original = Driver._outcome
    job, _ = service.jobs.submit(spec)
    monkeypatch.setattr(Driver, "_outcome", fail_once)
    service.start()
    assert service.wait(job.id) == "finished"
    assert service.jobs.get(job.id).attempt == 2
    assert service.factors(job.id) == undisturbed(spec)
    assert service.wait(other.id) == "finished"


def test_the_last_progress_is_that_of_the_end(service: Service) -> None:
    service.start()
    job, _ = service.jobs.submit(stub_spec(budget=30))
    service.wait(job.id)
    progress = service.jobs.get(job.id).progress
    assert (progress["phase"], progress["share"], progress["candidates"]) == ("finished", 1.0, 30)


def test_a_pause_keeps_what_was_evaluated_however_slowly_it_is_recorded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.faults.seconds = 0.02
    record = EvaluationStore.record

    def slowly(store: EvaluationStore, batches: dict[Lease, Batch]) -> Recorded:
        time.sleep(0.3)
        return record(store, batches)

    monkeypatch.setattr(EvaluationStore, "record", slowly)
    service.start()
    job, _ = service.jobs.submit(stub_spec(budget=300))
    service.candidates(job.id, 10)
    service.jobs.pause(job.id)
    service.wait(job.id, "paused")
    rows = EvaluationStore(service.database).of_job(job.id, limit=1000)
    assert {row.state for row in rows} == {"done"}
    assert len(rows) == service.faults.begun.total()


def test_a_coordinator_without_room_leaves_jobs_to_others(service: Service) -> None:
    service.start(workers=0)
    spec = stub_spec(budget=30, resources={"workers": 3})
    job, _ = service.jobs.submit(spec)
    time.sleep(0.5)
    assert service.jobs.get(job.id).state == "queued"
    service.start(workers=3)
    assert service.wait(job.id) == "finished"


def test_a_coordinator_with_too_little_room_gives_jobs_back_while_there_are_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.job_run.WAIT_FOR_CAPACITY_SECONDS", 0.5)
    small = service.start(workers=1)
    service.start(workers=3, jobs=4)
    until = time.monotonic() + 20
    while small._alone():
        assert time.monotonic() < until
        time.sleep(0.1)
    spec = stub_spec(budget=30, resources={"workers": 3})
    ids = [service.jobs.submit(spec)[0].id for _ in range(3)]
    assert [service.wait(job_id) for job_id in ids] == ["finished"] * 3


def test_progress_does_not_fall_back_when_a_job_is_taken_up_again(service: Service) -> None:
    service.faults.seconds = 0.05
    service.start(workers=2)
    job, _ = service.jobs.submit(stub_spec(budget=100))
    service.candidates(job.id, 60)
    service.stop()
    before = service.jobs.get(job.id).progress
    assert before["candidates"] > 0
    service.start(workers=2)
    seen = []
    while service.jobs.get(job.id).state != "finished":
        seen.append(service.jobs.get(job.id).progress["candidates"])
        time.sleep(0.01)
    assert min(seen) >= before["candidates"]
