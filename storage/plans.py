"""Plans: submitted once, paused, resumed, cancelled, retried, and supplied with the checkpoints that they wait for."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, null, update

from factor_search.files.canonical_json import sha256_of
from storage.asked import Asked
from storage.errors import ConflictError, NotFoundError
from storage.events import PLAN
from storage.job_rows import new_id, request_state, resume_job
from storage.owners import OwnerStore
from storage.plan_rows import (
    PLAN_COLUMNS,
    PRESENT,
    STATE,
    Plan,
    PlanStage,
    make_job,
    plans_of,
    read_plan,
    set_plan,
    tell,
)
from storage.schema import now, plan_stages, plans
from storage.states import ENDED, JobState, PlanState, StateRequest

__all__ = ["CHECKPOINT", "PREFIX", "Plan", "PlanStage", "PlanStore"]

PREFIX = "p"
"""Of the ids of plans; those of jobs are hexadecimal."""
CHECKPOINT = "checkpoint"
"""Key of the supplied checkpoint's folder, beside the work of a stage that waits for one."""


class PlanStore(OwnerStore[Plan]):
    """All changes of plans by users.

    The row of a plan is always locked before that of its job.
    """

    _history, _source, _columns, _state = PLAN, PRESENT, PLAN_COLUMNS, STATE

    def _read(self, connection: Connection, id: str) -> Plan:
        return read_plan(connection, id)

    def _listed(self, connection: Connection, rows: Sequence[Row[Any]]) -> Sequence[Plan]:
        return plans_of(connection, rows, outline=True)

    def submit(
        self,
        *,
        name: str,
        spec: Mapping[str, Any],
        stages: Sequence[tuple[str, str]],
        idempotency_key: str | None = None,
        submitted_by: str | None = None,
        asked: Asked | None = None,
    ) -> tuple[Plan, bool]:
        """Store a plan, for a coordinator to start.

        Args:
            name: for people.
            spec: the plan with all stages spelled out.
            stages: name and kind of each.
            idempotency_key: the same key never makes a second plan.
            submitted_by: id of an API key.
            asked: what was asked for, which the same key has to repeat; None is ``spec``.

        Returns:
            The plan and whether it is new.

        Raises:
            ConflictError: the idempotency key was used for another specification.
        """
        plan_id, asked = PREFIX + new_id(), asked or Asked(spec, spec)
        values = {
            "id": plan_id,
            "name": name,
            "spec": spec,
            "state": PlanState.RUNNING,
            "stage": 0,
            "idempotency_key": idempotency_key,
            "request_sha256": asked.sha256,
            "submitted_by": submitted_by,
            "submitted_at": now(),
            "events": 0,
        }
        rows = [
            {"plan_id": plan_id, "number": number, "name": stage, "kind": kind, "reused": False}
            for number, (stage, kind) in enumerate(stages)
        ]

        def insert_plan(connection: Connection) -> str:
            connection.execute(insert(plans).values(values))
            connection.execute(insert(plan_stages), rows)
            tell(connection, plan_id, "submitted", name=name, stages=[stage for stage, _ in stages])
            return plan_id

        return self._submit_once(insert_plan, idempotency_key, asked)

    def pause(self, plan_id: str) -> Plan:
        """Stop a plan so that it can be resumed, its job at its coordinator's next look.

        Raises:
            NotFoundError: there is no such plan.
            ConflictError: it has ended.
        """
        with self._database.writing() as connection:
            plan = self._to_steer(connection, plan_id, "paused")
            if plan.state != PlanState.PAUSED and plan.request != StateRequest.PAUSE:
                event = "pause_requested" if _is_driven(plan) else "paused"
                set_plan(connection, plan_id, event, state=PlanState.PAUSED)
                if _has_work(plan):
                    request_state(connection, _job_id(plan), StateRequest.PAUSE, JobState.PAUSED)
            return read_plan(connection, plan_id)

    def resume(self, plan_id: str) -> Plan:
        """Continue a paused plan, or take back a pause that was not carried out yet.

        Raises:
            NotFoundError: there is no such plan.
            ConflictError: it has ended.
        """
        with self._database.writing() as connection:
            plan = self._to_steer(connection, plan_id, "resumed")
            if plan.state == PlanState.PAUSED or plan.request == StateRequest.PAUSE:
                set_plan(connection, plan_id, "resumed", state=PlanState.RUNNING)
                if _has_work(plan):
                    resume_job(connection, _job_id(plan))
            return read_plan(connection, plan_id)

    def cancel(self, plan_id: str) -> Plan:
        """End a plan for good, and its job with it; what its stages have made is kept.

        Raises:
            NotFoundError: there is no such plan.
            ConflictError: it has ended otherwise.
        """
        with self._database.writing() as connection:
            plan = read_plan(connection, plan_id, lock=True)
            if plan.state == PlanState.CANCELLED:
                return plan
            self._to_steer(connection, plan_id, PlanState.CANCELLED)
            set_plan(connection, plan_id, PlanState.CANCELLED, state=PlanState.CANCELLED, ended_at=now())
            if _has_work(plan):
                request_state(connection, _job_id(plan), StateRequest.CANCEL, JobState.CANCELLED)
            return read_plan(connection, plan_id)

    def retry(self, plan_id: str, stage: str | None = None) -> Plan:
        """Start a plan that has ended again at one of its stages; the stages before it keep their results.

        Args:
            plan_id: the plan.
            stage: name of the stage; None is the first that has not finished.

        Raises:
            NotFoundError: there is no such plan, or no such stage in it.
            ConflictError: it has not ended, its job has not, or the stage was not reached.
        """
        with self._database.writing() as connection:
            plan = read_plan(connection, plan_id, lock=True)
            if plan.state not in ENDED:
                raise ConflictError(f"plan {plan_id} is {plan.state}: only one that has ended can be retried")
            if plan.job is not None and plan.job.state not in ENDED:
                raise ConflictError(f"the job {plan.job.id} of plan {plan_id} is still being ended: try again soon")
            number = _number_of(plan, stage)
            again = and_(plan_stages.c.plan_id == plan_id, plan_stages.c.number >= number)
            forgotten = {"work": null(), "job_id": None, "reused": False, "outcome": null()}  # not JSON's null
            connection.execute(update(plan_stages).where(again).values(forgotten))
            values = {"state": PlanState.RUNNING, "stage": number, "error": None, "ended_at": None}
            set_plan(connection, plan_id, "retried", {"stage": plan.stages[number].name}, **values)
            return read_plan(connection, plan_id)

    def supply_checkpoint(self, plan_id: str, spec: Mapping[str, Any]) -> Plan:
        """Make the job that looks into a checkpoint for the stage that waits for one.

        Args:
            plan_id: the plan.
            spec: what the job is to do.

        Raises:
            NotFoundError: there is no such plan.
            ConflictError: it does not wait.
        """
        with self._database.writing() as connection:
            plan = read_plan(connection, plan_id, lock=True)
            check_waiting(plan)
            stage = plan.present
            assert stage is not None
            name = f"{plan.name}/{stage.name}"
            job_id = make_job(connection, plan, name=name, kind=stage.kind, spec=spec, spec_sha256=sha256_of(spec))
            supplied = {"stage": stage.name, "job": job_id}
            set_plan(connection, plan_id, "checkpoint_supplied", supplied, state=PlanState.RUNNING, error=None)
            return read_plan(connection, plan_id)

    def _to_steer(self, connection: Connection, plan_id: str, wanted: str) -> Plan:
        plan = read_plan(connection, plan_id, lock=True)
        if plan.state in ENDED:
            raise ConflictError(f"plan {plan_id} is {plan.state}: it cannot be {wanted}")
        return plan


def check_waiting(plan: Plan) -> None:
    """Refuse a checkpoint that no stage waits for.

    Raises:
        ConflictError: the plan does not wait.
    """
    if plan.state != PlanState.WAITING:
        raise ConflictError(f"plan {plan.id} is {plan.state}: it does not wait for a checkpoint")


def _number_of(plan: Plan, stage: str | None) -> int:
    if stage is None:
        return min(plan.stage, len(plan.stages) - 1)
    for known in plan.stages:
        if known.name == stage:
            if known.number > plan.stage:
                raise ConflictError(f"plan {plan.id} has not come to {stage}: start at an earlier stage")
            return known.number
    names = ", ".join(known.name for known in plan.stages)
    raise NotFoundError(f"plan {plan.id} has no stage {stage!r}, only {names}")


def _has_work(plan: Plan) -> bool:
    """Whether the present stage has a job that has not ended."""
    return plan.job is not None and plan.job.state not in ENDED


def _is_driven(plan: Plan) -> bool:
    return plan.job is not None and plan.job.state == JobState.RUNNING


def _job_id(plan: Plan) -> str:
    assert plan.job is not None
    return plan.job.id
