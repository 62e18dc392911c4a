"""Stored records as the values that the REST interface shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from api.cursors import JOB_ID, PLAN_ID
from api.plan_schemas import Plan, PlanLinks, PlanStage
from api.schemas import Evaluation, Job, Links, Progress, finite, moment
from api.settings import Settings
from factor_search.measure.evaluation import OK, PRUNED
from storage.coordinators import Coordinator, CoordinatorStore
from storage.database import Database
from storage.errors import NotFoundError
from storage.evaluations import CandidateRow, EvaluationStore
from storage.jobs import Job as StoredJob
from storage.jobs import JobStore
from storage.plans import Plan as StoredPlan
from storage.plans import PlanStore
from storage.states import JobState


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of one database, for the routes."""

    database: Database
    settings: Settings
    jobs: JobStore
    plans: PlanStore
    evaluations: EvaluationStore
    coordinators: CoordinatorStore

    @classmethod
    def of(cls, database: Database, settings: Settings) -> "Records":
        """All stores of a database."""
        return cls(
            database=database,
            settings=settings,
            jobs=JobStore(database),
            plans=PlanStore(database),
            evaluations=EvaluationStore(database),
            coordinators=CoordinatorStore(database),
        )

    def job(self, job_id: str) -> StoredJob:
        """A job by an id that a user gave.

        Raises:
            NotFoundError: there is none, or no id looks like that.
        """
        if not JOB_ID.fullmatch(job_id):
            raise NotFoundError(f"there is no job {job_id[:100]!r}: GET /v1/jobs lists them")
        return self.jobs.get(job_id)

    def plan(self, plan_id: str) -> StoredPlan:
        """A plan by an id that a user gave.

        Raises:
            NotFoundError: there is none, or no id looks like that.
        """
        if not PLAN_ID.fullmatch(plan_id):
            raise NotFoundError(f"there is no plan {plan_id[:100]!r}: GET /v1/plans lists them")
        return self.plans.get(plan_id)

    def live_coordinators(self) -> list[Coordinator]:
        """Those heard of lately."""
        silent = self.settings.coordinator_silent_seconds
        return [known for known in self.coordinators.list() if known.silent_seconds < silent]

    def show(self, *jobs: StoredJob) -> list[Job]:
        """Jobs as users see them."""
        anybody = self._anybody(jobs)
        return [_shown(job, anybody) for job in jobs]

    def show_plans(self, *plans: StoredPlan) -> list[Plan]:
        """Plans as users see them."""
        anybody = self._anybody(plans)
        return [_shown_plan(plan, anybody) for plan in plans]

    def _anybody(self, asked: Sequence[StoredJob | StoredPlan]) -> bool:
        """Whether somebody is there to go on with what is to go on."""
        return any(one.state in (JobState.QUEUED, JobState.RUNNING) for one in asked) and bool(self.live_coordinators())


def records(request: Request) -> Records:
    """The records that a request is about; a dependency of the routes."""
    found: Records = request.app.state.records
    return found


def _shown(job: StoredJob, anybody: bool) -> Job:
    here = f"/v1/jobs/{job.id}"
    return Job(
        id=job.id,
        name=job.name,
        kind=job.kind,
        plan=job.plan_id,
        stage=job.plan_stage,
        state=job.state,
        request=job.request,
        note=_note("job", job.state, anybody),
        submitted_at=moment(job.submitted_at),
        started_at=None if job.started_at is None else moment(job.started_at),
        ended_at=None if job.ended_at is None else moment(job.ended_at),
        coordinator=job.owner,
        progress=Progress.model_validate(job.progress) if job.progress else None,
        error=job.error,
        spec=job.spec,
        links=Links(
            self=here,
            events=f"{here}/events",
            evaluations=f"{here}/evaluations",
            factors=f"{here}/factors",
            report=f"{here}/report",
            dashboard="/dashboard",
        ),
    )


def _shown_plan(plan: StoredPlan, anybody: bool) -> Plan:
    here = f"/v1/plans/{plan.id}"
    return Plan(
        id=plan.id,
        name=plan.name,
        state=plan.state,
        request=plan.request,
        note=_note("plan", plan.state, anybody),
        submitted_at=moment(plan.submitted_at),
        ended_at=None if plan.ended_at is None else moment(plan.ended_at),
        stage=None if plan.present is None else plan.present.name,
        stages=[
            PlanStage(
                name=stage.name,
                kind=stage.kind,
                state=plan.stage_state(stage),
                job=stage.job_id,
                reused=stage.reused,
                model=((stage.outcome or {}).get("model") or {}).get("id"),
            )
            for stage in plan.stages
        ],
        progress=Progress.model_validate(plan.job.progress) if plan.job and plan.job.progress else None,
        events=plan.events,
        error=plan.error,
        spec=plan.spec,
        links=PlanLinks(self=here, events=f"{here}/events", factors=f"{here}/factors", report=f"{here}/report"),
    )


def _note(what: str, state: str, anybody: bool) -> str | None:
    if anybody:
        return None
    if state == JobState.QUEUED:
        return f"no coordinator is running, so nothing starts this {what}: factor-search serve runs one"
    if state == JobState.RUNNING:
        return f"its coordinator is silent; the {what} goes on as soon as one is running: factor-search serve runs one"
    return None


def shown_evaluation(row: CandidateRow) -> Evaluation:
    """A candidate and its evaluation as users see them."""
    result = row.evaluation
    loss = finite(result.summary.loss) if result is not None and result.outcome in (OK, PRUNED) else None
    perplexity = math.exp(loss) if loss is not None and loss < 700 else None
    losses = row.losses_so_far or [] if result is None else result.losses
    return Evaluation(
        number=row.number,
        generation=row.generation,
        part=row.part,
        state=row.state,
        outcome=result.outcome if result else None,
        documents=len(losses),
        perplexity=perplexity,
        loss=loss,
        losses=finite(list(losses)),
        tokens=list(result.tokens) if result else [],
        losses_at={str(length): list(values) for length, values in result.losses_at.items()} if result else {},
        rescale_factors=list(row.factors.rescale_factors),
        initial_tokens=row.factors.initial_tokens,
        attention_factor=row.factors.attention_factor,
        key=row.key,
        seconds=result.seconds if result else None,
        worker=row.worker,
        attempts=row.attempts,
        reused=row.reused,
        error=row.error,
    )
