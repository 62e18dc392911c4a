"""Plans: submitted, listed, steered, given checkpoints, and what has come out of their stages."""

from pathlib import Path as FilePath
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from api.cursors import PLAN_ID, decode_cursor, encode_cursor
from api.plan_schemas import Checkpoint, Plan, PlanPage, Retry
from api.problems import RefusedError, documented
from api.routes.jobs import Stores
from api.routes.results import LARGEST_NUMBER, STREAM_EXAMPLE, event_stream, preferred
from api.schemas import EXAMPLE_PLAN_ID, finite, inline
from api.submission import checked_idempotency_key, submitted_plan
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.spec import PlanSpec, parse_plan
from factor_search.plan.work import last_factors, parse_outcome, parse_work
from storage.plans import Plan as StoredPlan
from storage.plans import check_waiting
from storage.states import PlanState
from workers.long_task_run import CHECKPOINT

router = APIRouter(prefix="/v1/plans", tags=["plans"], responses=documented(401, 403, 422, 503))
PlanId = Annotated[str, Path(description="Id of a plan.", examples=[EXAMPLE_PLAN_ID])]


@router.post(
    "",
    status_code=201,
    response_model=Plan,
    summary="Submit a plan",
    responses=documented(
        400,
        409,
        413,
        415,
        ok={"description": "The plan of an earlier request with the same idempotency key", "model": Plan},
        created={
            "description": "The new plan",
            "headers": {"Location": {"description": "Path of the plan.", "schema": {"type": "string"}}},
        },
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PlanSpec"}}},
        }
    },
)
def submit_plan(
    request: Request,
    response: Response,
    stores: Stores,
    spec: Annotated[PlanSpec, Depends(submitted_plan)],
    idempotency_key: Annotated[
        str | None,
        Header(description="Any text of up to 200 characters; the same key never makes a second plan."),
    ] = None,
) -> Plan:
    """Queue a plan: its stages are carried out one after the other, each as a job.

    A stage that a finished one of any plan has done before is answered by that. What cannot end well is refused now, as
    far as it can be seen without loading the model.
    """
    from factor_search.plan.check import check_plan  # loads transformers

    key = checked_idempotency_key(idempotency_key)
    stores.settings.policy.check_plan(spec)
    check_plan(spec)
    expanded, by = spec.expanded(), request.scope["state"].get("key")
    plan, new = stores.plans.submit(
        name=spec.name,
        spec=expanded.model_dump(mode="json"),
        stages=[(str(stage.name), stage.kind) for stage in expanded.stages or ()],
        idempotency_key=key,
        submitted_by=by.id if by else None,
    )
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/plans/{plan.id}"
    return stores.show_plans(plan)[0]


@router.get("", response_model=PlanPage, summary="List plans")
def list_plans(
    stores: Stores,
    state: Annotated[
        Annotated[PlanState, inline(PlanState)] | None,
        Query(description="Only plans in this state."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="At most so many.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> PlanPage:
    """Plans, newest first."""
    before = None if cursor is None else decode_cursor(cursor, PLAN_ID)
    found = stores.plans.list(state=state, limit=limit + 1, before=before)
    page = found[:limit]
    following = encode_cursor(page[-1].submitted_at, page[-1].id) if len(found) > limit else None
    return PlanPage(plans=stores.show_plans(*page), next=following)


@router.get("/{plan_id}", response_model=Plan, summary="One plan", responses=documented(404))
def get_plan(plan_id: PlanId, stores: Stores) -> Plan:
    """A plan as it is now."""
    return stores.show_plans(stores.plan(plan_id))[0]


@router.post("/{plan_id}/pause", response_model=Plan, summary="Pause a plan", responses=documented(404, 409))
def pause_plan(plan_id: PlanId, stores: Stores) -> Plan:
    """Stop a plan so that it can be resumed; its job is paused as soon as its coordinator hears of it."""
    return stores.show_plans(stores.plans.pause(stores.plan(plan_id).id))[0]


@router.post("/{plan_id}/resume", response_model=Plan, summary="Resume a plan", responses=documented(404, 409))
def resume_plan(plan_id: PlanId, stores: Stores) -> Plan:
    """Let a paused plan go on where it was; a fine-tuning goes on from its last checkpoint."""
    return stores.show_plans(stores.plans.resume(stores.plan(plan_id).id))[0]


@router.post("/{plan_id}/cancel", response_model=Plan, summary="Cancel a plan", responses=documented(404, 409))
def cancel_plan(plan_id: PlanId, stores: Stores) -> Plan:
    """End a plan for good; what its stages have made is kept."""
    return stores.show_plans(stores.plans.cancel(stores.plan(plan_id).id))[0]


@router.post(
    "/{plan_id}/retry", response_model=Plan, summary="Try a plan again", responses=documented(400, 404, 409, 413)
)
def retry_plan(plan_id: PlanId, stores: Stores, retry: Retry | None = None) -> Plan:
    """Begin again with a stage of a plan that has ended; those before it keep their results."""
    stage = None if retry is None else retry.stage
    return stores.show_plans(stores.plans.retry(stores.plan(plan_id).id, stage))[0]


@router.post(
    "/{plan_id}/checkpoint",
    response_model=Plan,
    summary="Hand in a checkpoint",
    responses=documented(400, 404, 409, 413),
)
def hand_in_checkpoint(plan_id: PlanId, stores: Stores, checkpoint: Checkpoint) -> Plan:
    """Give a plan the model that it waits for. One of another architecture, shape or vocabulary is refused now.

    Then a worker loads it; if that fails, the plan waits again and its `error` says why.
    """
    from factor_search.plan.checkpoint import check_checkpoint  # loads transformers

    plan = stores.plan(plan_id)
    check_waiting(plan)
    assert plan.present is not None
    work = parse_work(plan.present.work)
    assert isinstance(work, AwaitWork)
    stores.settings.policy.check_supplied_checkpoint(checkpoint.model)
    check_checkpoint(work, FilePath(checkpoint.model))
    spec = work.model_dump(mode="json") | {CHECKPOINT: checkpoint.model}
    return stores.show_plans(stores.plans.hand_in(plan.id, spec))[0]


@router.get(
    "/{plan_id}/events",
    summary="Watch a plan",
    response_class=StreamingResponse,
    responses=documented(
        404,
        ok={
            "description": "Server-sent events, as of a job. What begins a stage names its job, which has its own",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}},
        },
        no_content={"description": "The plan has ended and there are no more events: do not reconnect"},
    ),
)
def plan_events(
    plan_id: PlanId,
    stores: Stores,
    request: Request,
    after: Annotated[
        int, Query(ge=0, le=LARGEST_NUMBER, description="Only events after this number; Last-Event-ID goes first.")
    ] = 0,
    last_event_id: Annotated[str | None, Header(description="Number of the last event that was seen.")] = None,
) -> Response:
    """All events from the first, or after a number, and then each as it happens, until the plan has ended."""
    return event_stream(request, stores.plan(plan_id), after, last_event_id)


@router.get(
    "/{plan_id}/factors",
    summary="The factors that a plan found",
    response_class=JSONResponse,
    responses=documented(
        404,
        409,
        ok={
            "description": "A factors file",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/FactorsFile"}}},
        },
    ),
)
def plan_factors(
    plan_id: PlanId,
    stores: Stores,
    half: Annotated[
        Literal["long", "short"], Query(description="Short: the readjusted ones that make a pair with the long ones.")
    ] = "long",
    stage: Annotated[str | None, Query(description="Those of this search or readjusting instead.")] = None,
) -> Response:
    """The factors for the plan's last model so far, or those of a stage, as a file."""
    plan = stores.plan(plan_id)
    if stage is None:
        long, short = last_factors(parse_plan(plan.spec), *_ended(plan))
        found = long if half == "long" else short
    else:
        found = next(((known.outcome or {}).get("factors") for known in plan.stages if known.name == stage), None)
    if found is None:
        what = f"its stage {stage!r} has no factors" if stage else f"there are no {half} factors for its last model"
        raise RefusedError(409, f"plan {plan.id} is {plan.state}, and {what}")
    return JSONResponse(finite(found))


@router.get(
    "/{plan_id}/report",
    summary="The report of a plan",
    response_class=JSONResponse,
    responses=documented(
        404,
        409,
        ok={
            "description": "The report, as JSON or as a page",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/PlanReport"}},
                "text/html": {"schema": {"type": "string"}},
            },
        },
    ),
)
def plan_report(
    plan_id: PlanId,
    stores: Stores,
    wanted: Annotated[
        Literal["json", "html"] | None,
        Query(alias="format", description="Default: what the Accept header prefers."),
    ] = None,
    accept: Annotated[str, Header(description="text/html asks for the page.")] = "",
) -> Response:
    """What each stage gained that has finished so far, with its uncertainty."""
    from factor_search.plan.report import plan_report

    plan = stores.plan(plan_id)
    works, outcomes = _ended(plan)
    if not works:
        raise RefusedError(409, f"plan {plan.id} is {plan.state}, and no stage of it has finished")
    document = finite(plan_report(parse_plan(plan.spec), works, outcomes))
    if (wanted or preferred(accept)) == "json":
        return JSONResponse(document, headers={"Vary": "Accept"})
    from factor_search.plan.page import render  # matplotlib takes a second to import

    return HTMLResponse(render(document), headers={"Vary": "Accept"})


def _ended(plan: StoredPlan) -> tuple[list[Work], list[Outcome]]:
    """What the stages that have finished had to do, and what came of it."""
    ended = [stage for stage in plan.stages if stage.outcome is not None]
    return [parse_work(stage.work) for stage in ended], [parse_outcome(stage.outcome) for stage in ended]
