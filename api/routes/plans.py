"""The routes of plans: those that jobs have too, retrying, checkpoints and factors."""

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.responses import JSONResponse, Response

from api import deferred
from api.cursors import PLAN_ID
from api.estimates import check_memory
from api.plan_schemas import Checkpoint, Plan, PlanPage, Retry
from api.problems import RefusedError, documented
from api.records import Records
from api.routes.resource import Checked, Checks, Resource, Stores, Writes, answer, routes_of
from api.schemas import EXAMPLE_PLAN_ID, finite
from api.submission import placed_refusals, submitted_plan
from factor_search.files.reading import under
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.spec import PlanSpec, parse_plan
from factor_search.plan.work import last_factors, parse_outcome, parse_work
from storage.asked import Asked
from storage.events import PLAN
from storage.plans import CHECKPOINT, check_waiting
from storage.plans import Plan as StoredPlan
from storage.states import PlanState
from workers.pinning import pinned
from workers.policy import AT_SUBMISSION


def check(stores: Records, spec: PlanSpec, ignore_memory: bool) -> Checked:
    """Refuse a plan that the policy does not allow or that cannot end well, as far as this is known by now."""
    policy = stores.settings.policy
    policy.check_plan(spec, AT_SUBMISSION)
    with placed_refusals(), under(policy.reading_rules(AT_SUBMISSION)):
        notes = deferred.check_plan(spec)
    if not ignore_memory:
        check_memory(stores, spec)
    expanded = spec.expanded()
    return Checked(pinned(expanded), Asked.of(expanded), notes)


def store(stores: Records, checked: Checked, key: str | None, by: str | None) -> tuple[StoredPlan, bool]:
    """Queue a plan."""
    plan: PlanSpec = checked.spec
    return stores.plans.submit(
        name=plan.name,
        spec=plan.model_dump(mode="json"),
        asked=checked.asked,
        stages=[(str(stage.name), stage.kind) for stage in plan.stages or ()],
        idempotency_key=key,
        submitted_by=by,
    )


def report(stores: Records, plan: StoredPlan) -> dict[str, Any]:
    """What each stage gained that has finished so far.

    Raises:
        RefusedError: none has.
    """
    works, outcomes = _ended(plan)
    if not works:
        raise RefusedError(409, f"plan {plan.id} is {plan.state}, and no stage of it has finished")
    return deferred.plan_report(parse_plan(plan.spec, stored=True), works, outcomes)


def _ended(plan: StoredPlan) -> tuple[list[Work], list[Outcome]]:
    """The work of the stages that have finished, and their outcomes."""
    ended = [stage for stage in plan.stages if stage.outcome is not None]
    return [parse_work(stage.work) for stage in ended], [parse_outcome(stage.outcome) for stage in ended]


PLANS = Resource(
    history=PLAN,
    ids=PLAN_ID,
    example_id=EXAMPLE_PLAN_ID,
    states=PlanState,
    shown=Plan,
    page=PlanPage,
    spec_schema="PlanSpec",
    report_schema="PlanReport",
    parse=submitted_plan,
    check=check,
    store=store,
    on_submit="Queue a plan: its stages are carried out one after the other, each as a job.\n\nA stage that is "
    "identical to a finished stage of any plan reuses its result. A plan that cannot succeed is refused now, as far as "
    "this is known without loading the model.",
    report=report,
    render=deferred.plan_page,
)
router = routes_of(PLANS)
PlanId = Annotated[str, PLANS.id_parameter()]


@router.post("/{plan_id}/retry", response_model=Plan, summary="Retry a plan", responses=documented(400, 404, 409))
async def retry(plan_id: PlanId, stores: Stores, writes: Writes, retry: Retry | None = None) -> Response:
    """Start a plan that has ended again, at one of its stages; the stages before it keep their results."""
    stage = None if retry is None else retry.stage
    return await writes.run(lambda: answer(stores.show(stores.plans.retry(stores.find_plan(plan_id).id, stage))[0]))


@router.post(
    "/{plan_id}/checkpoint",
    response_model=Plan,
    summary="Supply a checkpoint",
    responses=documented(400, 404, 409),
)
async def supply_checkpoint(
    plan_id: PlanId, stores: Stores, checks: Checks, writes: Writes, checkpoint: Checkpoint
) -> Response:
    """Give a plan the model that it waits for. One of another architecture, shape or vocabulary is refused now.

    Then a worker loads it; if that fails, the plan waits again and its `error` says why.
    """

    def checked() -> tuple[str, dict[str, Any]]:
        plan = stores.find_plan(plan_id)
        check_waiting(plan)
        assert plan.present is not None
        work = parse_work(plan.present.work)
        assert isinstance(work, AwaitWork)
        policy = stores.settings.policy
        policy.check_supplied_checkpoint(checkpoint.model, AT_SUBMISSION)
        with under(policy.reading_rules(AT_SUBMISSION)):
            deferred.check_checkpoint(work, FilePath(checkpoint.model))
        return plan.id, work.model_dump(mode="json") | {CHECKPOINT: checkpoint.model}

    id, spec = await checks.run(checked)
    return await writes.run(lambda: answer(stores.show(stores.plans.supply_checkpoint(id, spec))[0]))


@router.get(
    "/{plan_id}/factors",
    summary="The factors that a plan found",
    response_class=JSONResponse,
    responses=documented(
        *(404, 409),
        ok={
            "description": "A factors file",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/FactorsFile"}}},
        },
    ),
)
def factors(
    plan_id: PlanId,
    stores: Stores,
    half: Annotated[
        Literal["long", "short"], Query(description="Short: the readjusted ones that make a pair with the long ones.")
    ] = "long",
    stage: Annotated[str | None, Query(description="Those of this search or readjustment instead.")] = None,
) -> Response:
    """The factors for the plan's last model so far, or those of a stage, as a file."""
    plan = stores.find_plan(plan_id)
    if stage is None:
        long, short = last_factors(parse_plan(plan.spec, stored=True), *_ended(plan))
        found = long if half == "long" else short
    else:
        found = next(((known.outcome or {}).get("factors") for known in plan.stages if known.name == stage), None)
    if found is None:
        what = f"its stage {stage!r} has no factors" if stage else f"there are no {half} factors for its last model"
        raise RefusedError(409, f"plan {plan.id} is {plan.state}, and {what}")
    return JSONResponse(finite(found))
