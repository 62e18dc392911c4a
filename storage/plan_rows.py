"""Rows of plans and their stages within a transaction, as values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, String, and_, case, func, literal, or_, select, update

from storage.errors import NotFoundError
from storage.events import PLAN, append_events
from storage.job_rows import JOB_COLUMNS, Job, Spent, insert_job
from storage.schema import jobs, now, plan_stages, plans
from storage.states import ENDED, JobState, PlanState, StageState, StateRequest


@dataclass(frozen=True, kw_only=True)
class PlanStage:
    """A stage of a plan as stored."""

    number: int
    """From 0."""
    name: str
    kind: str
    work: dict[str, Any] | None
    """What is to be done, once the stages before it have ended."""
    job_id: str | None
    """Of the job that does it, or had done it before."""
    reused: bool
    """Whether the job had done it for another plan, or before."""
    outcome: dict[str, Any] | None
    """What it hands to those behind it; None until it has ended well."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan as stored. Times are seconds since 1970."""

    id: str
    name: str
    spec: dict[str, Any]
    """With all stages spelled out."""
    state: str
    """queued, running, paused, waiting (for a checkpoint), finished, failed or cancelled."""
    request: str | None
    """``pause``, while the coordinator of its job has not yet done so."""
    stage: int
    """Number of the present one; how many there are once it has finished."""
    submitted_at: float
    ended_at: float | None
    events: int
    error: str | None
    submitted_by: str | None
    """Id of the API key."""
    kept: str | None
    """Name under which it is kept when others are aged out."""
    stages: tuple[PlanStage, ...]
    job: Job | None
    """Of the present stage."""
    spent: Mapping[str, Spent] = field(default_factory=dict)
    """What its stages have cost, by name, with the jobs that failed; those of other plans cost nothing here."""

    @property
    def present(self) -> PlanStage | None:
        """The present stage; None once all have ended."""
        return self.stages[self.stage] if self.stage < len(self.stages) else None

    def stage_state(self, stage: PlanStage) -> str:
        """Its state, one of :class:`storage.states.StageState`."""
        if stage.outcome is not None:
            return StageState.FINISHED
        if stage.number != self.stage:
            return StageState.PENDING
        if self.job is not None and self.state not in ENDED:
            return self.job.state
        return self.state


PRESENT = plans.outerjoin(
    plan_stages, and_(plan_stages.c.plan_id == plans.c.id, plan_stages.c.number == plans.c.stage)
).outerjoin(jobs, and_(jobs.c.id == plan_stages.c.job_id, plan_stages.c.outcome.is_(None)))
"""Plans with their present stages and the jobs of these."""
STATE: ColumnElement[str] = case(
    (
        plans.c.state != PlanState.RUNNING,
        case(
            (
                and_(plans.c.state == PlanState.PAUSED, jobs.c.state == JobState.RUNNING),
                literal(PlanState.RUNNING, String),
            ),
            else_=plans.c.state,
        ),
    ),
    (
        and_(plans.c.stage == 0, or_(jobs.c.state.is_(None), jobs.c.state == JobState.QUEUED)),
        literal(PlanState.QUEUED, String),
    ),
    else_=literal(PlanState.RUNNING, String),
)
"""What a plan's state is to people: of one that is under way, its job knows more."""
_OWN = ("id", "name", "spec", "stage", "submitted_at", "ended_at", "events", "error", "submitted_by", "kept")
PLAN_COLUMNS = [
    *(plans.c[name] for name in _OWN),
    plans.c.state.label("wanted"),
    STATE.label("state"),
    *(column.label(f"job_{column.name}") for column in JOB_COLUMNS),
]


def read_plan(connection: Connection, plan_id: str, *, lock: bool = False) -> Plan:
    """One plan with its stages.

    Raises:
        NotFoundError: there is none.
    """
    if lock:  # apart, since no outer join can be locked
        connection.execute(select(plans.c.id).where(plans.c.id == plan_id).with_for_update())
    row = connection.execute(select(*PLAN_COLUMNS).select_from(PRESENT).where(plans.c.id == plan_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no plan {plan_id}")
    return plans_of(connection, [row])[0]


def plans_of(connection: Connection, rows: Sequence[Row[Any]], *, outline: bool = False) -> list[Plan]:
    """Rows of :data:`PLAN_COLUMNS` as values, with the stages of all of them.

    Args:
        connection: in a transaction.
        rows: of plans.
        outline: leave out works, and of outcomes all but the models: reports are large.
    """
    wanted = plan_stages.c.plan_id.in_([row.id for row in rows])
    columns = _OUTLINE if outline else list(plan_stages.c)
    stages: dict[str, list[PlanStage]] = {}
    for row in connection.execute(select(*columns).where(wanted).order_by(plan_stages.c.number)):
        stages.setdefault(row.plan_id, []).append(_outlined(row) if outline else _stage(row))
    spent = _spent(connection, stages)
    return [
        Plan(
            **{name: getattr(row, name) for name in _OWN},
            state=row.state,
            request=StateRequest.PAUSE if (row.wanted, row.state) == (PlanState.PAUSED, PlanState.RUNNING) else None,
            stages=tuple(stages[row.id]),
            job=None if row.job_id is None else _job(row),
            spent=spent.get(row.id, {}),
        )
        for row in rows
    ]


def _spent(connection: Connection, plan_ids: Iterable[str]) -> dict[str, dict[str, Spent]]:
    """What stages have cost, by plan and name."""
    place = (jobs.c.plan_id, jobs.c.plan_stage)
    sums = (func.sum(jobs.c.tokens), func.sum(jobs.c.device_seconds))
    query = select(*place, *sums).where(jobs.c.plan_id.in_(list(plan_ids))).group_by(*place)
    found: dict[str, dict[str, Spent]] = {}
    for plan_id, stage, tokens, seconds in connection.execute(query):
        found.setdefault(plan_id, {})[stage] = Spent(int(tokens), float(seconds))
    return found


_PLACE = ("number", "name", "kind", "job_id", "reused")
_OUTLINE = [
    plan_stages.c.plan_id,
    *(plan_stages.c[name] for name in _PLACE),
    plan_stages.c.outcome.is_not(None).label("has_ended"),
    plan_stages.c.outcome[("model", "id")].as_string().label("model"),
]


def _stage(row: Row[Any]) -> PlanStage:
    return PlanStage(**{name: getattr(row, name) for name in PlanStage.__dataclass_fields__})


def _outlined(row: Row[Any]) -> PlanStage:
    outcome = {"model": None if row.model is None else {"id": row.model}} if row.has_ended else None
    return PlanStage(**{name: getattr(row, name) for name in _PLACE}, work=None, outcome=outcome)


def _job(row: Row[Any]) -> Job:
    return Job(**{name: getattr(row, f"job_{name}") for name in Job.__dataclass_fields__})


def make_job(connection: Connection, plan: Plan, **values: Any) -> str:
    """Queue the job of the present stage; returns its id. For the values see :func:`storage.job_rows.insert_job`."""
    assert plan.present is not None
    of_plan = {"plan_id": plan.id, "plan_stage": plan.present.name, "request_sha256": values["spec_sha256"]}
    job_id = insert_job(connection, **values, **of_plan)
    set_stage(connection, plan, job_id=job_id)
    return job_id


def stage_has_ended(connection: Connection, plan: Plan, outcome: Mapping[str, Any], reused: str | None = None) -> None:
    """The present stage has ended well: it is the turn of the next, or the plan is finished."""
    stage = plan.present
    assert stage is not None
    set_stage(connection, plan, outcome=outcome)
    data = {"stage": stage.name, "number": plan.stage + 1, "of": len(plan.stages)}
    set_plan(connection, plan.id, "stage_finished", data | ({"reused": reused} if reused else {}), stage=plan.stage + 1)
    if plan.stage + 1 == len(plan.stages):
        set_plan(connection, plan.id, PlanState.FINISHED, state=PlanState.FINISHED, ended_at=now())


def set_plan(
    connection: Connection, plan_id: str, event: str, data: dict[str, Any] | None = None, **values: Any
) -> None:
    """Change a plan and say so in its history."""
    connection.execute(update(plans).where(plans.c.id == plan_id).values(values))
    tell(connection, plan_id, event, **(data or {}))


def set_stage(connection: Connection, plan: Plan, **values: Any) -> None:
    """Change the present stage of a plan."""
    present = and_(plan_stages.c.plan_id == plan.id, plan_stages.c.number == plan.stage)
    connection.execute(update(plan_stages).where(present).values(values))


def tell(connection: Connection, plan_id: str, event: str, **data: Any) -> None:
    """Write into a plan's history."""
    append_events(connection, plan_id, [(event, data)], PLAN)
