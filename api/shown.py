"""Stored jobs, plans and evaluations as the values that the REST interface shows."""

import math
from collections.abc import Mapping

from api.plan_schemas import Plan, PlanLinks, PlanStage
from api.schemas import Cost, Evaluation, Job, Links, Progress, finite, moment
from factor_search.measure.evaluation import OK, PRUNED
from storage.evaluations import CandidateRow
from storage.jobs import Job as StoredJob
from storage.jobs import Spent
from storage.plans import Plan as StoredPlan
from storage.states import JobState


def shown_job(job: StoredJob, *, driven: bool, owners: Mapping[str, str]) -> Job:
    """A job as users see it.

    Args:
        job: as stored.
        driven: whether a coordinator is alive.
        owners: names of API keys by their ids.
    """
    here = f"/v1/jobs/{job.id}"
    return Job(
        id=job.id,
        name=job.name,
        kind=job.kind,
        plan=job.plan_id,
        stage=job.plan_stage,
        state=job.state,
        request=job.request,
        note=_note("job", job.state, driven),
        submitted_at=moment(job.submitted_at),
        started_at=None if job.started_at is None else moment(job.started_at),
        ended_at=None if job.ended_at is None else moment(job.ended_at),
        submitted_by=owners.get(job.submitted_by or ""),
        kept=job.kept,
        coordinator=job.owner,
        progress=Progress.model_validate(job.progress) if job.progress else None,
        events=job.events,
        error=job.error,
        cost=_cost(Spent(job.tokens, job.device_seconds)),
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


def shown_plan(plan: StoredPlan, *, driven: bool, owners: Mapping[str, str]) -> Plan:
    """A plan as users see it; for the arguments see :func:`shown_job`."""
    here = f"/v1/plans/{plan.id}"
    return Plan(
        id=plan.id,
        name=plan.name,
        state=plan.state,
        request=plan.request,
        note=_note("plan", plan.state, driven),
        submitted_at=moment(plan.submitted_at),
        ended_at=None if plan.ended_at is None else moment(plan.ended_at),
        submitted_by=owners.get(plan.submitted_by or ""),
        kept=plan.kept,
        stage=None if plan.present is None else plan.present.name,
        stages=[
            PlanStage(
                name=stage.name,
                kind=stage.kind,
                state=plan.stage_state(stage),
                job=stage.job_id,
                reused=stage.reused,
                cost=_cost(plan.spent.get(stage.name, Spent())),
                model=((stage.outcome or {}).get("model") or {}).get("id"),
            )
            for stage in plan.stages
        ],
        progress=Progress.model_validate(plan.job.progress) if plan.job and plan.job.progress else None,
        cost=_cost(sum(plan.spent.values(), Spent())),
        events=plan.events,
        error=plan.error,
        spec=plan.spec,
        links=PlanLinks(self=here, events=f"{here}/events", factors=f"{here}/factors", report=f"{here}/report"),
    )


def _cost(spent: Spent) -> Cost:
    return Cost(tokens=spent.tokens, device_seconds=spent.device_seconds)


def _note(what: str, state: str, driven: bool) -> str | None:
    if driven:
        return None
    if state == JobState.QUEUED:
        return f"no coordinator is running, so nothing starts this {what}: factor-search serve runs one"
    if state == JobState.RUNNING:
        return (
            f"its coordinator is silent; the {what} continues as soon as one is running: factor-search serve runs one"
        )
    return None


def shown_evaluation(row: CandidateRow) -> Evaluation:
    """A candidate and its evaluation as users see them."""
    result = row.evaluation
    loss = finite(result.summary.loss) if result is not None and result.outcome in (OK, PRUNED) else None
    perplexity = math.exp(loss) if loss is not None and loss < 700 and row.part != "divergence" else None
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
