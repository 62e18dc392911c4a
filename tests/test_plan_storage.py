"""Rows of plans: one contract for SQLite and PostgreSQL, and databases from before there were plans."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from storage.database import MIGRATIONS, VERSION_TABLE, Database
from storage.errors import ConflictError, NotFoundError
from storage.evaluations import EvaluationStore
from storage.events import PLAN, read_events
from storage.jobs import JobStore, Lease
from storage.plan_steps import PlanSteps
from storage.plans import Plan, PlanStore
from tests.test_storage import SPEC

STAGES = [("search-1", "search"), ("tuned", "await_checkpoint"), ("export-1", "export")]
OUTCOME: dict[str, Any] = {"model": None, "factors": {"a": 1}, "report": {}}
TUNED: dict[str, Any] = {"model": {"id": "m"}, "factors": None, "report": {}}
SUPPLIED = {"kind": "await_checkpoint", "checkpoint": "m"}


class TestPlanContract:
    @pytest.fixture(params=["sqlite", "postgresql"])
    def database(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / 'jobs.db'}"
        else:
            url = request.getfixturevalue("postgresql_database")
        with Database(url) as database:
            yield database

    @pytest.fixture
    def plans(self, database: Database) -> PlanStore:
        return PlanStore(database)

    @pytest.fixture
    def steps(self, database: Database) -> PlanSteps:
        return PlanSteps(database)

    @pytest.fixture
    def jobs(self, database: Database) -> JobStore:
        return JobStore(database)

    def test_a_submitted_plan_is_queued_and_due(self, plans: PlanStore, steps: PlanSteps, database: Database) -> None:
        plan, new = submit(plans)
        assert (new, plan.state, plan.stage, plan.job, plan.request) == (True, "queued", 0, None, None)
        assert [(stage.name, stage.kind, stage.outcome) for stage in plan.stages] == [(*s, None) for s in STAGES]
        assert plans.get(plan.id) == plan
        assert steps.due() == [plan]
        assert history(database, plan.id) == ["submitted"]
        assert plan.id.startswith("p")

    def test_an_idempotency_key_gives_the_same_plan_or_a_conflict(self, plans: PlanStore) -> None:
        first, _ = submit(plans, idempotency_key="k")
        assert submit(plans, idempotency_key="k") == (first, False)
        with pytest.raises(ConflictError, match=first.id):
            submit(plans, idempotency_key="k", spec={"other": 1})

    def test_plans_are_listed_newest_first_in_pages_and_by_state(self, plans: PlanStore, steps: PlanSteps) -> None:
        ids = [submit(plans)[0].id for _ in range(4)]
        first = plans.list(limit=2)
        second = plans.list(limit=9, before=(first[-1].submitted_at, first[-1].id))
        assert [plan.id for plan in first + second] == ids[::-1]
        plans.pause(ids[1])
        assert [plan.id for plan in plans.list(state="paused")] == [ids[1]]
        assert {plan.id for plan in plans.list(state="queued")} == {ids[0], ids[2], ids[3]}

    def test_an_unknown_plan_is_not_found(self, plans: PlanStore) -> None:
        actions: list[Callable[[str], Any]] = [plans.get, plans.pause, plans.resume, plans.cancel, plans.retry]
        actions.append(lambda plan: plans.supply_checkpoint(plan, SUPPLIED))
        for action in actions:
            with pytest.raises(NotFoundError, match="nothing"):
                action("nothing")

    def test_its_way_from_stage_to_stage(
        self, plans: PlanStore, steps: PlanSteps, jobs: JobStore, database: Database
    ) -> None:
        plan, _ = submit(plans)
        assert queue(steps, plan)
        plan = plans.get(plan.id)
        assert plan.job is not None
        assert (plan.state, plan.job.kind, plan.job.plan_id, plan.job.plan_stage) == (
            "queued",
            "search",
            plan.id,
            "search-1",
        )
        assert steps.due() == []
        lease = claim(jobs)
        assert plans.get(plan.id).state == "running"
        jobs.end(lease, "finished", factors=OUTCOME["factors"], report=OUTCOME["report"])
        (due,) = steps.due()
        assert steps.conclude(due)
        plan = plans.get(plan.id)
        assert (plan.state, plan.stage, plan.stages[0].outcome) == ("running", 1, OUTCOME)
        assert steps.wait(plan, {"kind": "await_checkpoint"})
        assert (plans.get(plan.id).state, steps.due()) == ("waiting", [])
        assert plans.supply_checkpoint(plan.id, SUPPLIED | {"checkpoint": "broken"}).state == "running"
        jobs.end(claim(jobs), "failed", error="it is broken")
        assert steps.conclude(*steps.due())
        plan = plans.get(plan.id)
        assert (plan.state, plan.stage, plan.job, plan.error) == ("waiting", 1, None, "it is broken")
        plans.supply_checkpoint(plan.id, SUPPLIED)
        jobs.end(claim(jobs), "finished", outcome=TUNED)
        assert steps.conclude(*steps.due())
        plan = plans.get(plan.id)
        assert (plan.state, plan.stage, plan.error, plan.stages[1].outcome) == ("running", 2, None, TUNED)
        assert steps.reuse(plan, work={"x": 1}, job_id=lease.job_id, outcome={"report": {"files": []}})
        (outline,) = plans.list()
        models = [(stage.outcome or {}).get("model") for stage in outline.stages]
        assert (outline.state, models) == ("finished", [None, TUNED["model"], None])
        plan = plans.get(plan.id)
        assert (plan.state, plan.stage, plan.present, plan.stages[2].reused) == ("finished", 3, None, True)
        assert plan.ended_at is not None
        assert [plan.stage_state(stage) for stage in plan.stages] == ["finished"] * 3
        assert history(database, plan.id) == [
            *("submitted", "stage_queued", "stage_finished", "waiting", "checkpoint_supplied", "checkpoint_refused"),
            *("checkpoint_supplied", "stage_finished", "stage_finished", "finished"),
        ]

    def test_what_others_have_done_is_not_done_again(self, plans: PlanStore, steps: PlanSteps, jobs: JobStore) -> None:
        plan, _ = submit(plans)
        made: list[bool] = []
        threads = [threading.Thread(target=lambda: made.append(queue(steps, plan))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(made) == {True: 1, False: 5}
        assert len(jobs.list()) == 1
        seen = plans.get(plan.id)
        jobs.end(claim(jobs), "finished", outcome=OUTCOME)
        (due,) = steps.due()
        assert [steps.conclude(due), steps.conclude(due), steps.fail(due, "x"), queue(steps, seen)] == [
            *(True, False, False, False)
        ]
        assert plans.get(plan.id).stage == 1

    def test_a_failed_stage_fails_the_plan_and_can_be_tried_again(
        self, plans: PlanStore, steps: PlanSteps, jobs: JobStore, database: Database
    ) -> None:
        plan, _ = submit(plans)
        queue(steps, plan)
        jobs.end(claim(jobs), "failed", error="no documents")
        steps.conclude(*steps.due())
        plan = plans.get(plan.id)
        assert (plan.state, plan.error) == ("failed", "search-1: no documents")
        for action in (plans.pause, plans.resume, plans.cancel):
            with pytest.raises(ConflictError, match="failed"):
                action(plan.id)
        with pytest.raises(ConflictError, match="has not come to tuned"):
            plans.retry(plan.id, "tuned")
        with pytest.raises(NotFoundError, match="only search-1, tuned, export-1"):
            plans.retry(plan.id, "nonsense")
        plan = plans.retry(plan.id)
        assert (plan.state, plan.error, plan.ended_at, plan.job) == ("queued", None, None, None)
        with pytest.raises(ConflictError, match="queued"):
            plans.retry(plan.id)
        assert queue(steps, plan)
        jobs.end(claim(jobs), "finished", outcome=OUTCOME)
        steps.conclude(*steps.due())
        assert plans.get(plan.id).stage == 1
        steps.fail(plans.get(plan.id), "it cannot be")
        assert plans.get(plan.id).error == "tuned: it cannot be"
        again = plans.retry(plan.id, "search-1")
        assert [stage.outcome for stage in again.stages] == [None] * 3

    def test_pause_and_resume_reach_its_job(self, plans: PlanStore, steps: PlanSteps, jobs: JobStore) -> None:
        plan, _ = submit(plans)
        assert plans.pause(plan.id).state == "paused"
        assert steps.due() == []
        assert not queue(steps, plan)
        assert plans.resume(plan.id).state == "queued"
        queue(steps, plan)
        lease = claim(jobs)
        asked = plans.pause(plan.id)
        assert (asked.state, asked.request) == ("running", "pause")
        assert plans.pause(plan.id).request == "pause"
        assert jobs.renew([lease], 60) == {lease: "pause"}
        jobs.end(lease, "paused")
        assert (plans.get(plan.id).state, plans.get(plan.id).request) == ("paused", None)
        assert plans.resume(plan.id).state == "queued"
        lease = claim(jobs)
        plans.pause(plan.id)
        jobs.end(lease, "finished", outcome=OUTCOME)  # it came to its end before the request arrived
        assert (plans.get(plan.id).state, steps.due()) == ("paused", [])
        plans.resume(plan.id)
        assert len(steps.due()) == 1

    def test_cancel_ends_its_job(self, plans: PlanStore, steps: PlanSteps, jobs: JobStore) -> None:
        plan, _ = submit(plans)
        queue(steps, plan)
        lease = claim(jobs)
        assert plans.cancel(plan.id).state == "cancelled"
        assert plans.cancel(plan.id).state == "cancelled"
        assert jobs.get(lease.job_id).request == "cancel"
        with pytest.raises(ConflictError, match="still being ended"):
            plans.retry(plan.id)
        jobs.end(lease, "cancelled")
        assert steps.due() == []
        assert plans.retry(plan.id).state == "queued"

    def test_its_job_is_steered_with_it_alone(self, plans: PlanStore, steps: PlanSteps, jobs: JobStore) -> None:
        plan, _ = submit(plans)
        queue(steps, plan)
        job = plans.get(plan.id).job
        assert job is not None
        for action in (jobs.pause, jobs.resume, jobs.cancel):
            with pytest.raises(ConflictError, match=f"stage search-1 of the plan {plan.id}"):
                action(job.id)

    def test_only_a_plan_that_waits_takes_a_checkpoint(self, plans: PlanStore, steps: PlanSteps) -> None:
        plan, _ = submit(plans, stages=STAGES[1:])
        with pytest.raises(ConflictError, match="queued: it does not wait"):
            plans.supply_checkpoint(plan.id, SUPPLIED)
        steps.wait(plan, {})
        assert plans.pause(plan.id).state == "paused"
        with pytest.raises(ConflictError, match="paused"):
            plans.supply_checkpoint(plan.id, SUPPLIED)
        plans.resume(plan.id)
        assert steps.due() == [plans.get(plan.id)]
        steps.wait(plans.get(plan.id), {})
        plans.supply_checkpoint(plan.id, SUPPLIED)
        with pytest.raises(ConflictError, match="does not wait"):
            plans.supply_checkpoint(plan.id, SUPPLIED)

    def test_finished_jobs_are_found_by_their_work(self, plans: PlanStore, steps: PlanSteps, jobs: JobStore) -> None:
        plan, _ = submit(plans)
        queue(steps, plan)
        assert steps.finished_jobs("w" * 64) == []
        lease = claim(jobs)
        jobs.end(lease, "finished", factors=OUTCOME["factors"], report=OUTCOME["report"])
        assert steps.finished_jobs("w" * 64) == [(lease.job_id, OUTCOME)]
        assert steps.finished_jobs("v" * 64) == []


def submit(plans: PlanStore, **changes: Any) -> tuple[Plan, bool]:
    return plans.submit(**({"name": "one", "spec": {"stages": []}, "stages": STAGES} | changes))


def queue(steps: PlanSteps, plan: Plan) -> bool:
    return steps.queue(plan, work={"w": 1}, kind="search", spec={"s": 1}, spec_sha256="w" * 64, name="one/search-1")


def claim(jobs: JobStore) -> Lease:
    claimed = jobs.claim("c", 60)
    assert claimed is not None
    return claimed[1]


def history(database: Database, plan_id: str) -> list[str]:
    return [event.kind for event in read_events(database, plan_id, of=PLAN)]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_from_before_there_were_plans_keeps_its_jobs(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_database")
    with Database(url) as database:
        jobs, evaluations = JobStore(database), EvaluationStore(database)
        job, _ = jobs.submit(SPEC, idempotency_key="k")
        claimed = jobs.claim("c", 60)
        assert claimed is not None
        evaluations.start_search(claimed[1], 512, "study", {})
        jobs.end(claimed[1], "finished", factors={"a": 1}, report={"b": 2})
        known, events = jobs.get(job.id), read_events(database, job.id)
        migrate(database, "0001")
        assert database.check_version() == ", to be migrated at the next start"
    with Database(url) as database:
        assert database.check_version() == ""
        assert JobStore(database).get(job.id) == known
        assert (known.kind, known.plan_id) == ("search", None)
        assert read_events(database, job.id) == events
        assert JobStore(database).document(job.id, "report") == {"b": 2}
        assert JobStore(database).submit(SPEC, idempotency_key="k") == (known, False)
        with database.reading() as connection:
            assert connection.scalar(text("SELECT count(*) FROM searches")) == 1
        assert submit(PlanStore(database))[1]


def migrate(database: Database, revision: str) -> None:
    """Back to an earlier version."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == revision
