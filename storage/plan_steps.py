"""The steps by which any coordinator advances a plan.

Each step is one transaction, and does nothing if another coordinator has done it before. If a process dies between two
steps, the rows still say what to do next: a running plan is due if its present stage has no job, or one that has ended.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, or_, select

from factor_search.plan.kinds import KINDS
from factor_search.plan.kinds.contract import Execution
from storage.database import Database
from storage.errors import NotFoundError
from storage.job_rows import SEARCHES
from storage.plan_rows import (
    PLAN_COLUMNS,
    PRESENT,
    Plan,
    PlanStage,
    make_job,
    plans_of,
    read_plan,
    set_plan,
    set_stage,
    stage_has_ended,
    tell,
)
from storage.schema import jobs, now, plans
from storage.states import ENDED, JobState, PlanState


class PlanSteps:
    """What coordinators do with rows of plans."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, limit: int = 20, *, without: Collection[str] = ()) -> list[Plan]:
        """Running plans whose present stage has no job yet, or one that has ended; the oldest first.

        Args:
            limit: at most so many.
            without: ids of plans to leave out.
        """
        idle = or_(jobs.c.id.is_(None), jobs.c.state.in_(ENDED))
        due = (plans.c.state == PlanState.RUNNING, idle, plans.c.id.not_in(list(without)))
        query = select(*PLAN_COLUMNS).select_from(PRESENT).where(*due)
        with self._database.reading() as connection:
            return plans_of(connection, list(connection.execute(query.order_by(plans.c.submitted_at).limit(limit))))

    def is_due(self, seen: Plan) -> bool:
        """Whether a plan that was due still is, for the same step."""
        with self._database.reading() as connection:
            try:
                return _still_due(connection, seen, lock=False) is not None
            except NotFoundError:
                return False

    def finished_jobs(self, spec_sha256: str, limit: int = 3) -> list[tuple[str, dict[str, Any]]]:
        """Finished jobs of plans with identical work: ids and outcomes, the newest first."""
        done = (jobs.c.spec_sha256 == spec_sha256, jobs.c.state == JobState.FINISHED, jobs.c.plan_id.is_not(None))
        query = select(*_RESULTS).where(*done).order_by(jobs.c.submitted_at.desc()).limit(limit)
        with self._database.reading() as connection:
            return [(row.id, _outcome(row)) for row in connection.execute(query)]

    def has_begun(self, plan: Plan, spec_sha256: str) -> bool:
        """Whether the plan has had a job with this identity, finished or not."""
        begun = select(jobs.c.id).where(jobs.c.plan_id == plan.id, jobs.c.spec_sha256 == spec_sha256).limit(1)
        with self._database.reading() as connection:
            return connection.scalar(begun) is not None

    def queue(
        self, plan: Plan, *, work: Mapping[str, Any], kind: str, spec: Mapping[str, Any], spec_sha256: str, name: str
    ) -> bool:
        """Make the job of the present stage; returns whether it was made here."""
        with self._database.writing() as connection:
            stage = _still_due(connection, plan)
            if stage is None:
                return False
            job_id = make_job(connection, plan, name=name, kind=kind, spec=spec, spec_sha256=spec_sha256)
            set_stage(connection, plan, work=work)
            tell(connection, plan.id, "stage_queued", stage=stage.name, kind=stage.kind, job=job_id)
            return True

    def wait(self, plan: Plan, work: Mapping[str, Any]) -> bool:
        """Make the plan wait until a checkpoint is supplied for its present stage."""
        with self._database.writing() as connection:
            stage = _still_due(connection, plan)
            if stage is None:
                return False
            set_stage(connection, plan, work=work)
            set_plan(connection, plan.id, PlanState.WAITING, {"stage": stage.name}, state=PlanState.WAITING)
            return True

    def reuse(self, plan: Plan, *, work: Mapping[str, Any], job_id: str, outcome: Mapping[str, Any]) -> bool:
        """Reuse a finished job with identical work for the present stage, unless it was deleted meanwhile."""
        with self._database.writing() as connection:
            if _still_due(connection, plan) is None:
                return False
            if connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update()) is None:
                return False
            set_stage(connection, plan, work=work, job_id=job_id, reused=True)
            stage_has_ended(connection, plan, outcome, reused=job_id)
            return True

    def conclude(self, plan: Plan) -> bool:
        """Record how the job of the present stage has ended."""
        assert plan.job is not None
        with self._database.writing() as connection:
            if _still_due(connection, plan) is None:
                return False
            if plan.job.state == JobState.FINISHED:
                stage_has_ended(connection, plan, _outcome(connection.execute(_results(plan.job.id)).one()))
            elif KINDS[plan.job.kind].execution == Execution.CHECKPOINT:
                _wait_again(connection, plan, plan.job.error or plan.job.state)
            elif plan.job.state == JobState.CANCELLED:
                set_plan(connection, plan.id, PlanState.CANCELLED, state=PlanState.CANCELLED, ended_at=now())
            else:
                _fail(connection, plan, plan.job.error or "no reason was given")
            return True

    def fail(self, plan: Plan, error: str) -> bool:
        """End a plan whose present stage cannot be started."""
        with self._database.writing() as connection:
            if _still_due(connection, plan) is None:
                return False
            _fail(connection, plan, error)
            return True


def _still_due(connection: Connection, seen: Plan, *, lock: bool = True) -> PlanStage | None:
    """The present stage of a plan, locked, if the plan has not changed since it was read."""
    plan = read_plan(connection, seen.id, lock=lock)
    under_way = connection.scalar(select(plans.c.state).where(plans.c.id == seen.id)) == PlanState.RUNNING
    same = plan.stage == seen.stage and plan.present == seen.present
    return plan.present if under_way and same else None


def _wait_again(connection: Connection, plan: Plan, error: str) -> None:
    """The supplied checkpoint is refused: the plan waits for another."""
    assert plan.present is not None
    set_stage(connection, plan, job_id=None)
    refused = {"stage": plan.present.name, "error": error}
    set_plan(connection, plan.id, "checkpoint_refused", refused, state=PlanState.WAITING, error=error)


_RESULTS = [jobs.c[name] for name in ("id", "kind", "outcome", "factors", "report")]


def _results(job_id: str) -> Select[Any]:
    return select(*_RESULTS).where(jobs.c.id == job_id)


def _outcome(row: Row[Any]) -> dict[str, Any]:
    """The outcome of a finished job: of a search, its factors and report."""
    if row.kind in SEARCHES:
        return {"model": None, "factors": row.factors, "report": row.report}
    outcome: dict[str, Any] = row.outcome
    return outcome


def _fail(connection: Connection, plan: Plan, error: str) -> None:
    assert plan.present is not None
    stage, text = plan.present.name, f"{plan.present.name}: {error}"
    failed = {"state": PlanState.FAILED, "error": text, "ended_at": now()}
    set_plan(connection, plan.id, "failed", {"stage": stage, "error": text}, **failed)
