"""Jobs and plans under random sequences of everything that users and two coordinators do, on both databases.

``FACTOR_SEARCH_STATE_EXAMPLES=500 python -m pytest tests/test_state_machine.py`` tries more sequences.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Row, event, select

from bench.faults.stepped_clock import give_clock, step_postgresql, step_sqlite
from storage.clock import Clock
from storage.database import Database
from storage.errors import ConflictError, LeaseLostError, NotFoundError
from storage.evaluations import Batch, EvaluationStore
from storage.jobs import JobStore, Lease
from storage.plan_steps import PlanSteps
from storage.plans import Plan, PlanStore
from storage.schema import candidates, evaluations, events, jobs, metadata, now, plan_events, plan_stages, plans
from storage.states import ENDED, JobState, PlanState
from tests.records import candidate, computed
from tests.test_storage import SPEC

T = TypeVar("T")
EXAMPLES = int(os.environ.get("FACTOR_SEARCH_STATE_EXAMPLES", "25"))
MOST = 3
"""Jobs, and plans, that have not ended: with few, more happens to each."""
LEASE_SECONDS = 10.0
WEIGHTS = {
    "claim": 12,
    "renew": 4,
    "record": 8,
    "look": 6,
    "advance": 9,
    "finished": 4,
    "failed": 1,
    "asked": 3,
    "given_back": 3,
    "waits": 1,
    "submit a job": 8,
    "submit a plan": 5,
    "retry": 2,
    "supply": 3,
    "pause a job": 4,
    "resume a job": 4,
    "cancel a job": 2,
    "pause a plan": 3,
    "resume a plan": 4,
    "cancel a plan": 2,
    "clock 0.1": 4,
    "clock 6": 2,
    "clock 9": 2,
    "clock 10": 3,
    "clock -30": 1,
    "clock 3600": 1,
    "clock -3600": 1,
}
STEPS = [step for step, weight in WEIGHTS.items() for _ in range(weight)]
ENDINGS = ["finished", "failed", "asked", "given_back", "waits"]
"""How a coordinator lets go of a job."""
ANY = st.integers(0, 2**16)
"""Chooses among what there is, modulo its number."""
STAGES = [("search-1", "search"), ("tuned", "await_checkpoint"), ("export-1", "export")]
OUTCOME: dict[str, Any] = {"model": {"id": "m"}, "factors": None, "report": {}}

JOB_STEPS = {
    JobState.QUEUED: {JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED},
    JobState.RUNNING: {*JobState},
    JobState.PAUSED: {JobState.QUEUED, JobState.CANCELLED},
    **{JobState(state): set[JobState]() for state in ENDED},
}
"""Into which states a job may come in one step."""
PLAN_STEPS = {
    PlanState.RUNNING: {*PlanState} - {PlanState.QUEUED},
    PlanState.PAUSED: {PlanState.RUNNING, PlanState.CANCELLED},
    PlanState.WAITING: {PlanState.RUNNING, PlanState.PAUSED, PlanState.CANCELLED},
    **{PlanState(state): {PlanState.RUNNING} for state in ENDED},  # retried
}
JOB_EVENTS = {"submitted": "queued", "claimed": "running", "waiting": "queued"} | {state: state for state in JobState}
PLAN_EVENTS = {
    "submitted": "running",
    "pause_requested": "paused",
    "resumed": "running",
    "retried": "running",
    "checkpoint_supplied": "running",
    "checkpoint_refused": "waiting",
    **{state: state for state in PlanState},
}
"""The state that a job or plan is in after an event; other events leave it."""


def pick(items: Sequence[T], which: int) -> T:
    return items[which % len(items)]


class JobsAndPlans(RuleBasedStateMachine):
    database: Database
    step_clock: Callable[[float], None]

    def __init__(self) -> None:
        super().__init__()
        self.jobs, self.plans = JobStore(self.database), PlanStore(self.database)
        self.steps, self.store = PlanSteps(self.database), EvaluationStore(self.database)
        self.clock = self.passed = 0.0
        self.jobs.clock = Clock(lambda: time.monotonic() + self.passed)
        self.leases: list[Lease] = []
        """All that were ever given."""
        self.seen: list[Plan] = []
        """Plans as a scheduler read them, some of them long ago."""
        self.recorded: dict[str, float] = {}
        """When each evaluation was recorded, by key."""
        self.states: dict[str, str] = {}
        self.retried: set[str] = set()
        self.numbers = 0
        self.tables: dict[str, list[Row[Any]]] = {}
        """All rows, as they are since the last step."""

    @initialize(plans=st.integers(0, 1))
    def begin(self, plans: int) -> None:
        with self.database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.move(0.0)
        self.read()
        self.submit_a_plan(0) if plans else self.submit_a_job(1)

    def read(self) -> None:
        with self.database.reading() as connection:
            for table in metadata.sorted_tables:
                self.tables[table.name] = list(connection.execute(select(table).order_by(*table.primary_key)))

    def move(self, seconds: float) -> None:
        self.clock = seconds
        self.step_clock(seconds)

    def rows(self, table: Any) -> list[Row[Any]]:
        return self.tables[table.name]

    def live(self, table: Any) -> list[Row[Any]]:
        return [row for row in self.rows(table) if row.state not in ENDED]

    def one(self, table: Any, which: int) -> Row[Any] | None:
        """A job or plan, mostly one that has not ended."""
        rows = self.rows(table)
        live = [row for row in self.live(table) if getattr(row, "plan_id", None) is None]
        return pick(live if live and which % 4 else rows, which // 4) if rows else None

    def a_lease(self, which: int) -> Lease:
        """Mostly one that holds."""
        held = [lease for lease in self.leases if self.holds(lease)]
        return pick(held if held and which % 4 else self.leases, which // 4)

    @rule(what=st.sampled_from(STEPS), owner=st.sampled_from(["a", "b"]), which=ANY)
    def a_step(self, what: str, owner: str, which: int) -> None:
        match what.split():
            case [("pause" | "resume" | "cancel") as action, _, "job"]:
                self.steer_a_job(which, action)
            case [("pause" | "resume" | "cancel") as action, _, "plan"]:
                self.steer_a_plan(which, action)
            case ["submit", _, kind] if len(self.live(jobs if kind == "job" else plans)) < MOST:
                self.submit_a_job(which) if kind == "job" else self.submit_a_plan(which)
            case ["clock", seconds]:
                if 0 < float(seconds) <= LEASE_SECONDS:  # time passes; all else is a step of the clock alone
                    self.passed += float(seconds)
                self.move(self.clock + float(seconds))
            case [action]:
                self.a_coordinator_or_plan(action, owner, which)

    def a_coordinator_or_plan(self, action: str, owner: str, which: int) -> None:
        match action:
            case "claim":
                self.claim(owner)
            case "renew":
                self.renew(owner)
            case "look":
                self.seen = (self.seen + self.steps.due())[-6:]
            case "advance" if self.seen:
                self.advance_a_plan(which)
            case "record" if self.leases:
                self.record(which)
            case "retry":
                self.retry_a_plan(which, pick([None, *(name for name, _ in STAGES)], which))
            case "supply":
                self.supply_a_checkpoint(which)
            case _ if action in ENDINGS and self.leases:
                self.let_go(which, action.replace("_", " "))

    # What users do.

    def submit_a_job(self, which: int) -> None:
        known = {row.id for row in self.rows(jobs)}
        job, new = self.jobs.submit(SPEC, idempotency_key=None if which % 4 else "k")
        assert new == (job.id not in known)

    def submit_a_plan(self, which: int) -> None:
        self.plans.submit(name="plan", spec={"number": self.numbers}, stages=STAGES[which % 2 :])

    def steer_a_job(self, which: int, action: str) -> None:
        if (job := self.one(jobs, which)) is None:
            return
        try:
            after = getattr(self.jobs, action)(job.id)
        except ConflictError:
            assert job.plan_id or job.state in ENDED or job.request == "cancel", "a job can be steered before its end"
            return
        assert not job.plan_id, "a job of a plan is steered by its plan"
        wanted = {"pause": "paused", "cancel": "cancelled"}.get(action)
        assert wanted in (None, after.state) or (after.state == "running" and after.request == action)
        assert action != "resume" or (after.state in ("queued", "running") and after.request is None)

    def steer_a_plan(self, which: int, action: str) -> None:
        if (plan := self.one(plans, which)) is None:
            return
        try:
            getattr(self.plans, action)(plan.id)
        except ConflictError:
            assert plan.state in ENDED, "a plan can be steered before its end"

    def retry_a_plan(self, which: int, stage: str | None) -> None:
        if (plan := self.one(plans, which)) is None:
            return
        try:
            self.plans.retry(plan.id, stage)
        except (ConflictError, NotFoundError):
            return
        self.retried.add(plan.id)
        assert plan.state in ENDED

    def supply_a_checkpoint(self, which: int) -> None:
        if (plan := self.one(plans, which)) is None:
            return
        try:
            self.plans.supply_checkpoint(plan.id, {"kind": "await_checkpoint", "checkpoint": "m"})
        except ConflictError:
            assert plan.state != "waiting"

    # What coordinators do.

    def claim(self, owner: str) -> None:
        with self.database.reading() as connection:
            at = connection.scalar(select(now())) or 0.0
        before = {job.id: job for job in self.rows(jobs)}
        claimed = self.jobs.claim(owner, LEASE_SECONDS)
        if claimed is None:
            drives_suspect = any(
                job.owner == owner and job.state == "running" and job.claims_in_vain > 1 and job.lease_until > at
                for job in before.values()
            )
            for job in before.values():
                if drives_suspect and job.claims_in_vain:
                    continue  # it may be what felled its coordinator, and this one drives another such job
                assert job.state != "queued" or (job.waits_until or 0) > at, f"{job.id} is queued and nobody gets it"
                stepped = self.jobs.clock.stepped_within(LEASE_SECONDS)
                assert job.state != "running" or job.lease_until > at or stepped, (
                    f"{job.id} is driven by nobody and nobody gets it"
                )
            return
        job, lease = before[claimed[0].id], claimed[1]
        until = job.lease_until or 0.0
        live = job.state == "running" and at + 0.5 < until <= at + LEASE_SECONDS
        assert not live, "a job with a live owner was given to another"
        assert job.state in ("queued", "running")
        assert lease.attempt == job.attempt + 1
        self.leases.append(lease)

    def renew(self, owner: str) -> None:
        ours = [lease for lease in self.leases if lease.owner == owner]
        held = self.jobs.renew(ours, LEASE_SECONDS)
        assert set(held) == {lease for lease in ours if self.holds(lease)}

    def record(self, which: int) -> None:
        lease, number = self.a_lease(which), self.numbers if which % 2 else self.numbers // 2
        self.numbers += 1
        item, holds = candidate(number), self.holds(lease)
        running = candidate(number + 1)
        batch = Batch(
            computed=[computed(item)], done=[(item, "ok", False)], started=[running], events=[("progress", {})]
        )
        try:
            self.store.start_search(lease, 512, "study", {})
        except LeaseLostError:
            assert not holds, "a live owner may write"
        lost = self.store.record({lease: batch}).lost
        assert lost == ([] if holds else [lease]), "only a live owner may write"
        if holds:
            with self.database.reading() as connection:
                at = connection.scalar(select(evaluations.c.recorded_at).where(evaluations.c.key == item.key))
            assert at is not None
            assert self.recorded.setdefault(item.key, at) == at, "the first evaluation stays"

    def let_go(self, which: int, state: str) -> None:
        lease = self.a_lease(which)
        job, holds = next(row for row in self.rows(jobs) if row.id == lease.job_id), self.holds(lease)
        asked = {"pause": "paused", "cancel": "cancelled", None: None}[job.request]
        try:
            if state == "asked":
                if asked is None:
                    return
                self.jobs.end(lease, asked)
            elif state in ("finished", "failed"):
                self.jobs.end(lease, state, outcome=OUTCOME, error="it failed" if state == "failed" else None)
            else:
                waits = 0.0 if state == "given back" else 5.0
                self.jobs.give_back(lease, wait_seconds=waits, reason="shutting down")
        except LeaseLostError:
            assert not holds, "a live owner may let go"
        else:
            assert holds, "only a live owner may let go"
            after = self.jobs.get(job.id)
            assert after.request is None
            assert after.state == (state if state in ("finished", "failed") else asked or "queued")

    def advance_a_plan(self, which: int) -> None:
        """Take the next step of a plan as it was when it was looked at."""
        plan = pick(self.seen, which)
        stage = plan.present
        assert stage is not None
        if plan.job is not None:
            self.steps.conclude(plan)
        elif stage.kind == "await_checkpoint":
            self.steps.wait(plan, {"kind": stage.kind})
        elif which % 10 == 0:
            self.steps.fail(plan, "it cannot be started")
        else:
            work = {"kind": stage.kind}
            self.steps.queue(plan, work=work, kind=stage.kind, spec=work, spec_sha256="x" * 64, name="stage")

    # What holds at all times.

    def holds(self, lease: Lease) -> bool:
        job = next(row for row in self.rows(jobs) if row.id == lease.job_id)
        return bool((job.state, job.owner, job.attempt) == ("running", lease.owner, lease.attempt))

    @invariant()
    def everything_holds(self) -> None:
        self.read()
        self.only_legal_steps_are_taken()
        self.nothing_is_lost()
        self.check_history(jobs, events, JOB_EVENTS)
        self.check_history(plans, plan_events, PLAN_EVENTS)
        self.a_plan_and_its_job_agree()
        ended = {row.id for row in self.rows(jobs) if row.state in ENDED}
        assert not [row for row in self.rows(candidates) if row.job_id in ended and row.state == "running"]

    def only_legal_steps_are_taken(self) -> None:
        for row in [*self.rows(jobs), *self.rows(plans)]:
            of_job = hasattr(row, "attempt")
            before, state = self.states.get(row.id), row.state
            steps: Any = JOB_STEPS if of_job else PLAN_STEPS
            assert before is None or state == before or state in steps[before], f"{row.id}: from {before} to {state}"
            if before in ENDED and state != before:
                assert row.id in self.retried, f"{row.id} had ended"
            assert (row.ended_at is not None) == (state in ENDED)
            self.states[row.id] = state
        self.retried.clear()

    def nothing_is_lost(self) -> None:
        assert {row.key: row.recorded_at for row in self.rows(evaluations)} == self.recorded
        assert {row.id for row in [*self.rows(jobs), *self.rows(plans)]} >= set(self.states)

    def check_history(self, owners: Any, entries: Any, meaning: dict[str, str]) -> None:
        told: dict[str, list[str]] = {}
        for entry in self.rows(entries):
            history = told.setdefault(entry[0], [])
            history.append(entry.kind)
            assert entry.number == len(history), "events have no gaps"
        for owner in self.rows(owners):
            state = ""
            for kind in told[owner.id]:
                if kind == "resumed" and owners is jobs:
                    state = "queued" if state == "paused" else state
                else:
                    state = meaning.get(kind, state)
            assert owner.events == len(told[owner.id])
            assert owner.state == state, told[owner.id]

    def a_plan_and_its_job_agree(self) -> None:
        by_id = {row.id: row for row in self.rows(jobs)}
        present = {row.plan_id: row for row in self.rows(plan_stages)[::-1] if row.outcome is None}
        for plan in self.rows(plans):
            stage = present.get(plan.id)
            assert (stage is None) == (plan.state == "finished")
            job = None if stage is None or stage.job_id is None else by_id[stage.job_id]
            if job is None or job.state in ENDED:
                continue
            wanted = {"paused": "pause", "cancelled": "cancel"}.get(plan.state)
            if wanted is None:
                assert plan.state == "running"
                assert job.state in ("queued", "running"), f"the plan runs and its job is {job.state}"
                assert job.request is None
            else:
                assert job.state == "paused" or job.request == wanted, f"the plan is {plan.state}, its job {job.state}"


@pytest.fixture(params=["sqlite", "postgresql"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[JobsAndPlans]]:
    step_clock: Callable[[float], None]
    if request.param == "sqlite":
        url, offset = f"sqlite:///{tmp_path / 'jobs.db'}", [0.0]
        step_clock = lambda seconds: offset.__setitem__(0, seconds)  # noqa: E731
    else:
        url = request.getfixturevalue("postgresql_database")
        give_clock(url)
        with psycopg.connect(url, autocommit=True) as connection:  # thousands of transactions need not be on disk
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET synchronous_commit = off")
        step_clock = lambda seconds: step_postgresql(url, seconds)  # noqa: E731
    with Database(url) as database:
        if request.param == "sqlite":
            database.close()
            step_sqlite(database.engine, lambda: offset[0])
            event.listen(database.engine, "connect", lambda made, record: made.execute("PRAGMA synchronous=OFF"))
        attributes = {"database": database, "step_clock": staticmethod(step_clock)}
        yield type("JobsAndPlansHere", (JobsAndPlans,), attributes)


def test_jobs_and_plans_keep_their_rules(machine: type[JobsAndPlans]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60,
            deadline=None,
            derandomize="FACTOR_SEARCH_STATE_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
