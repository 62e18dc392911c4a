"""The route that compares jobs."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator
from starlette.responses import Response

from api.comparison import compare
from api.page_schemas import Comparison
from api.problems import documented
from api.routes.resource import Reports, Stores, answer
from api.schemas import EXAMPLE_ID

MOST_JOBS = 8
router = APIRouter(
    prefix="/v1/compare", tags=["jobs"], responses=documented(401, 403, 404, 408, 409, 413, 422, 429, 503)
)


def _several(text: str) -> str:
    ids = text.split(",")
    if not 2 <= len(set(ids)) == len(ids) <= MOST_JOBS:
        raise ValueError(f"must be the ids of 2 to {MOST_JOBS} different jobs, with commas between them")
    return text


@router.get("", response_model=Comparison, summary="Compare jobs")
async def read_comparison(
    stores: Stores,
    reports: Reports,
    jobs: Annotated[
        str,
        Query(
            max_length=400,
            description=f"Ids of 2 to {MOST_JOBS} searches, with commas between them.",
            examples=[f"{EXAMPLE_ID},{EXAMPLE_ID[:-1]}6"],
        ),
        AfterValidator(_several),
    ],
) -> Response:
    """What was asked for and found, and the paired differences of what was found on shared held-out documents."""
    return await reports.run(lambda: answer(compare(stores, [stores.find_job(id) for id in jobs.split(",")])))
