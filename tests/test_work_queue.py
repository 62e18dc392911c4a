"""Which worker does what next, decided without threads or clocks."""

from concurrent.futures import Future
from typing import Any, cast

from bench.stub import stub_spec
from factor_search.spec import ModelSpec
from workers.backend import Worker
from workers.tasks import Preparation, WorkerSlot
from workers.work_queue import BORROW_SECONDS, HOLD_SECONDS, WorkQueue

A, B = ModelSpec(id="a"), ModelSpec(id="b")


def work(job: str, model: ModelSpec = A) -> Preparation:
    return Preparation(job_id=job, spec=stub_spec(model=model.id), samples=None, result=Future())


def slots(*models: ModelSpec | None, since: float = 0.0) -> list[WorkerSlot]:
    made = [WorkerSlot(number, cast(Worker, None), 0.0) for number in range(len(models))]
    for slot, model in zip(made, models, strict=True):
        slot.model, slot.since, slot.model_since = model, since, since
    return made


def queue(**jobs: list[ModelSpec]) -> WorkQueue:
    """A queue of jobs by name, each with one item of work for each given model."""
    made = WorkQueue()
    for job, models in jobs.items():
        made.join(job, models[0])
        made.add([work(job, model) for model in models])
    return made


def drain(
    waiting: WorkQueue, idle: list[WorkerSlot], slots: list[WorkerSlot], now: float = 0.0
) -> list[tuple[int, str]]:
    chosen = []
    while idle and (choice := waiting.choose(idle, slots, now)) is not None:
        slot, done = choice
        slot.model = done.model
        idle.remove(slot)
        chosen.append((slot.number, done.job_id))
    return chosen


def test_generations_are_served_in_the_order_they_came() -> None:
    places = slots(A, A)
    both = queue(one=[A] * 3, two=[A] * 3)
    served = [job for _ in range(2) for _, job in drain(both, list(places), places)]
    both.add([work("one") for _ in range(2)])  # the next generation of a job goes to the end
    served += [job for _ in range(2) for _, job in drain(both, list(places), places)]
    assert served == ["one"] * 3 + ["two"] * 3 + ["one"] * 2


def test_a_worker_stays_with_its_model_while_that_has_work() -> None:
    places = slots(A, B)
    both = queue(one=[A] * 3, two=[B] * 3)
    for _ in range(3):
        assert sorted(drain(both, list(places), places)) == [(0, "one"), (1, "two")]


def test_a_new_model_gets_its_share_of_workers() -> None:
    places = slots(A, A, A, A)
    drain(both := queue(one=[A] * 9, two=[B] * 9), list(places), places)
    assert sorted(str(slot.model.id) for slot in places if slot.model) == ["a", "a", "b", "b"]
    drain(both, list(places), places)
    assert sorted(str(slot.model.id) for slot in places if slot.model) == ["a", "a", "b", "b"]


def test_workers_leave_a_model_that_no_job_uses_any_more() -> None:
    places = slots(B, B)
    assert len(drain(queue(one=[A] * 2), list(places), places)) == 2


def test_a_single_worker_for_two_models_changes_seldom() -> None:
    places = slots(A)
    both = queue(one=[A] * 3, two=[B] * 3)
    assert drain(both, list(places), places, now=1.0) == [(0, "one")]
    assert drain(both, list(places), places, now=1.5) == [(0, "one")]
    assert drain(both, list(places), places, now=HOLD_SECONDS + 1) == [(0, "two")]


def test_a_worker_without_work_of_its_model_helps_elsewhere_after_a_while() -> None:
    places = slots(A, A, B, B)
    one = queue(one=[A] * 9)
    one.join("two", B)
    idle = places[2:]
    assert drain(one, list(idle), places, now=BORROW_SECONDS / 2) == []
    idle[0].load_seconds = 60.0  # where loading takes long, it pays later
    assert drain(one, list(idle), places, now=BORROW_SECONDS * 2) == [(3, "one")]


def test_lost_work_comes_first_and_a_job_that_left_is_forgotten() -> None:
    places = slots(A)
    one = queue(one=[A], two=[A])
    lost = work("one")
    one.put_back(lost)
    assert one.choose(places, places, 0.0) == (places[0], lost)
    one.leave("one")
    one.put_back(lost)
    assert drain(one, list(places), places) == [(0, "two")]
    assert len(one) == 0


def test_removed_work_is_not_assigned() -> None:
    places = slots(A)
    one = WorkQueue()
    one.join("one", A)
    pieces: list[Any] = [work("one"), work("one")]
    one.add(pieces)
    one.remove({pieces[0]})
    assert one.choose(places, places, 0.0) == (places[0], pieces[1])
