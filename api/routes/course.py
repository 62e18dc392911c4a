"""The routes of a job that show how its search went, and how its factors can be had."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.course import FROM_THE_START, course
from api.downloads import downloads
from api.page_schemas import Course, Downloads
from api.problems import documented
from api.routes.jobs import JobId
from api.routes.resource import LARGEST_NUMBER, Reports, Stores, answer

MOST_CANDIDATES = 5000
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 404, 408, 413, 422, 429, 503))


@router.get("/{job_id}/course", response_model=Course, summary="The course of a search")
async def read_course(
    job_id: JobId,
    stores: Stores,
    reports: Reports,
    request: Request,
    after: Annotated[
        int,
        Query(ge=FROM_THE_START, le=LARGEST_NUMBER, description="Only candidates after this number; -1 is all."),
    ] = FROM_THE_START,
    limit: Annotated[int, Query(ge=1, le=MOST_CANDIDATES, description="At most so many candidates.")] = 1000,
) -> Response:
    """A few figures of every candidate, to be drawn: a tenth of what `/evaluations` answers with.

    Ask first without `after`, then with `next` while there is one, and later on with `settled`. `about` has a number
    for each closed form once a worker has begun it: ask without `after` until each has one, or generation 1 has begun.
    """
    studies = request.app.state.studies
    return await reports.run(lambda: answer(course(stores, studies, stores.find_job(job_id), after, limit)))


@router.get(
    "/{job_id}/downloads",
    response_model=Downloads,
    summary="The formats of a job's factors",
    responses=documented(409),
)
def read_downloads(job_id: JobId, stores: Stores) -> Response:
    """Every format with the command that writes it and the command that loads it."""
    return answer(downloads(stores.find_job(job_id)))
