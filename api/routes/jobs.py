"""Submitting, listing and steering jobs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from api.cursors import decode_cursor, encode_cursor
from api.problems import documented
from api.records import Records, records
from api.schemas import EXAMPLE_ID, Job, JobPage, inline
from api.submission import checked_idempotency_key, submitted_spec, with_warm_start
from factor_search.job import check_possible
from factor_search.spec import JobSpec
from storage.states import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 422, 503))
JobId = Annotated[str, Path(description="Id of a job.", examples=[EXAMPLE_ID])]
Stores = Annotated[Records, Depends(records)]


@router.post(
    "",
    status_code=201,
    response_model=Job,
    summary="Submit a job",
    responses=documented(
        400,
        409,
        413,
        415,
        ok={"description": "The job of an earlier request with the same idempotency key", "model": Job},
        created={
            "description": "The new job",
            "headers": {"Location": {"description": "Path of the job.", "schema": {"type": "string"}}},
        },
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}},
        }
    },
)
def submit(
    request: Request,
    response: Response,
    stores: Stores,
    spec: Annotated[JobSpec, Depends(submitted_spec)],
    idempotency_key: Annotated[
        str | None,
        Header(description="Any text of up to 200 characters; the same key never makes a second job.", examples=["k1"]),
    ] = None,
) -> Job:
    """Queue a search. Sent again with the same Idempotency-Key, it answers with the job of the first time.

    What `warm_start` names in `files` and `jobs` is read now and kept with the job, in `warm_start.factors`.
    """
    key = checked_idempotency_key(idempotency_key)
    stores.settings.policy.check(spec)
    spec = with_warm_start(spec, stores)
    check_possible(spec)
    by = request.scope["state"].get("key")
    job, new = stores.jobs.submit(spec, idempotency_key=key, submitted_by=by.id if by else None)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return stores.show(job)[0]


@router.get("", response_model=JobPage, summary="List jobs")
def list_jobs(
    stores: Stores,
    state: Annotated[
        Annotated[JobState, inline(JobState)] | None,
        Query(description="Only jobs in this state."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="At most so many.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    before = None if cursor is None else decode_cursor(cursor)
    found = stores.jobs.list(state=state, limit=limit + 1, before=before)
    page = found[:limit]
    following = encode_cursor(page[-1].submitted_at, page[-1].id) if len(found) > limit else None
    return JobPage(jobs=stores.show(*page), next=following)


@router.get("/{job_id}", response_model=Job, summary="One job", responses=documented(404))
def get_job(job_id: JobId, stores: Stores) -> Job:
    """A job as it is now."""
    return stores.show(stores.job(job_id))[0]


@router.post("/{job_id}/pause", response_model=Job, summary="Pause a job", responses=documented(404, 409))
def pause(job_id: JobId, stores: Stores) -> Job:
    """Stop a job so that it can be resumed; a driven job is paused as soon as its coordinator hears of it."""
    return stores.show(stores.jobs.pause(stores.job(job_id).id))[0]


@router.post("/{job_id}/resume", response_model=Job, summary="Resume a job", responses=documented(404, 409))
def resume(job_id: JobId, stores: Stores) -> Job:
    """Queue a paused job again; it goes on where it was."""
    return stores.show(stores.jobs.resume(stores.job(job_id).id))[0]


@router.post("/{job_id}/cancel", response_model=Job, summary="Cancel a job", responses=documented(404, 409))
def cancel(job_id: JobId, stores: Stores) -> Job:
    """End a job for good; its evaluations are kept."""
    return stores.show(stores.jobs.cancel(stores.job(job_id).id))[0]
