"""What comes out of a job: events, evaluations, factors, report."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from api.problems import RefusedError, documented
from api.records import Records, shown_evaluation
from api.routes.jobs import JobId, Stores
from api.schemas import EvaluationPage, finite
from factor_search.factors_file import parse_factors
from storage.events import JOB, PLAN
from storage.jobs import Job
from storage.plans import Plan
from storage.states import ENDED, SEARCHES, JobState

router = APIRouter(prefix="/v1/jobs", tags=["results"], responses=documented(401, 403, 404, 422, 503))
LARGEST_NUMBER = 2**31 - 1
STREAM_EXAMPLE = (
    'id: 7\nevent: progress\ndata: {"number": 7, "at": "2026-01-31T12:00:00.250000Z", "kind": "progress", '
    '"data": {"phase": "searching", "generation": 2}}\n\n'
)


def event_stream(request: Request, owner: Job | Plan, after: int, last_event_id: str | None) -> Response:
    """The events of a job or plan after a number, as they happen.

    Raises:
        RefusedError: nobody can have seen the event that is named.
    """
    history = PLAN if isinstance(owner, Plan) else JOB
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 10):
            raise RefusedError(422, "the Last-Event-ID header must be the number of an event")
        after = int(last_event_id)
    if after > owner.events:
        detail = f"{history.word} {owner.id} has {owner.events} events, so nobody can have seen number {after}"
        raise RefusedError(422, detail)
    if owner.state in ENDED and after == owner.events:
        return Response(status_code=204)
    return StreamingResponse(
        request.app.state.streams.of(owner.id, after, history),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get(
    "/{job_id}/events",
    summary="Watch a job",
    response_class=StreamingResponse,
    responses=documented(
        ok={
            "description": "Server-sent events, each with its number as id, its kind as event and an Event as data",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}},
        },
        no_content={"description": "The job has ended and there are no more events: do not reconnect"},
    ),
)
def events(
    job_id: JobId,
    stores: Stores,
    request: Request,
    after: Annotated[
        int, Query(ge=0, le=LARGEST_NUMBER, description="Only events after this number; Last-Event-ID goes first.")
    ] = 0,
    last_event_id: Annotated[str | None, Header(description="Number of the last event that was seen.")] = None,
) -> Response:
    """All events from the first, or after a number, and then each as it happens, until the job has ended."""
    job = stores.job(job_id)
    return event_stream(request, job, after, last_event_id)


@router.get("/{job_id}/evaluations", response_model=EvaluationPage, summary="Evaluations of a job")
def evaluations(
    job_id: JobId,
    stores: Stores,
    part: Annotated[
        Literal["search", "validation", "held_out", "held_out_text"],
        Query(description="Which documents they were measured on."),
    ] = "search",
    after: Annotated[int, Query(ge=-1, le=LARGEST_NUMBER, description="Only candidates after this number.")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
) -> EvaluationPage:
    """Candidates in the order proposed, whether evaluated already or not."""
    rows = stores.evaluations.of_job(stores.job(job_id).id, part=part, after=after, limit=limit + 1)
    page = [shown_evaluation(row) for row in rows[:limit]]
    return EvaluationPage(evaluations=page, next=page[-1].number if len(rows) > limit else None)


@router.get(
    "/{job_id}/factors",
    summary="The factors that a job found",
    response_class=JSONResponse,
    responses=documented(
        409,
        ok={
            "description": "A factors file, or the model's config.json with the factors in it",
            "content": {
                "application/json": {
                    "schema": {"anyOf": [{"$ref": "#/components/schemas/FactorsFile"}, {"type": "object"}]}
                }
            },
        },
    ),
)
def factors(
    job_id: JobId,
    stores: Stores,
    wanted: Annotated[
        Literal["factors", "huggingface"],
        Query(alias="format", description="factors: the factors file. huggingface: a config.json."),
    ] = "factors",
) -> Response:
    """The factors as a file, once the job is finished."""
    job = stores.job(job_id)
    document = _found(stores, job, "factors")
    if wanted == "huggingface":
        document = _huggingface(stores, job, document)
    return JSONResponse(finite(document))


@router.get(
    "/{job_id}/report",
    summary="The report of a job",
    response_class=JSONResponse,
    responses=documented(
        409,
        ok={
            "description": "The report, as JSON or as a page",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Report"}},
                "text/html": {"schema": {"type": "string"}},
            },
        },
    ),
)
def report(
    job_id: JobId,
    stores: Stores,
    wanted: Annotated[
        Literal["json", "html"] | None,
        Query(alias="format", description="Default: what the Accept header prefers."),
    ] = None,
    accept: Annotated[str, Header(description="text/html asks for the page.")] = "",
) -> Response:
    """Everything measured, with its uncertainty, once the job is finished."""
    document = finite(_found(stores, stores.job(job_id), "report"))
    if (wanted or preferred(accept)) == "json":
        return JSONResponse(document, headers={"Vary": "Accept"})
    from factor_search.report.page import render  # matplotlib takes a second to import

    return HTMLResponse(render(document), headers={"Vary": "Accept"})


def preferred(accept: str) -> str:
    """``html`` or ``json``, whichever an Accept header names first; browsers begin with html."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    known = [kind for kind in kinds if kind in ("text/html", "application/json")]
    return "html" if known[:1] == ["text/html"] else "json"


def _found(stores: Records, job: Job, name: str) -> dict[str, Any]:
    if job.kind not in SEARCHES:
        raise RefusedError(
            409, f"job {job.id} is no search, so it has no {name} document: see /v1/plans/{job.plan_id}/report"
        )
    document = stores.jobs.document(job.id, name) if job.state == JobState.FINISHED else None
    if document is None:
        because = f": {job.error}" if job.error else ""
        raise RefusedError(409, f"job {job.id} is {job.state}, so there is no {name} document{because}")
    return document


def _huggingface(stores: Records, job: Job, document: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the job's model with the factors in it, if this server may read that model."""
    from factor_search.export.huggingface import huggingface_config  # loads transformers
    from factor_search.model.loading import load_config

    model = job.parse_spec().model
    stores.settings.policy.check_model(model)
    return huggingface_config(parse_factors(document), load_config(model))
