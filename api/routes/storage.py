"""The routes of what the service stores: its size, and its deletion by age."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request

from api import retention
from api.cursors import JOB_ID, PLAN_ID, decode_cursor, encode_cursor
from api.problems import documented
from api.routes.resource import Reports, Stores
from api.schemas import Prune, Pruned, StorageReport
from api.slow_work import SlowWork

PRUNE_SECONDS = 20.0
"""After so long the rest is left for the next request."""
ID = re.compile(f"{JOB_ID.pattern}|{PLAN_ID.pattern}")
router = APIRouter(prefix="/v1/storage", tags=["storage"], responses=documented(401, 403, 408, 413, 422, 429, 503))


@router.get("", response_model=StorageReport, summary="What is stored")
async def report(
    stores: Stores,
    reports: Reports,
    limit: Annotated[int, Query(ge=1, le=200, description="At most so many jobs and plans.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> StorageReport:
    """The size of the database and of the work folder, and of jobs and plans, newest first."""
    before = None if cursor is None else decode_cursor(cursor, ID)
    page, last = await reports.run(lambda: retention.report(stores, limit, before))
    following = None if last is None else encode_cursor(last.submitted_at, last.id)
    return page.model_copy(update={"next": following})


async def _prunes(request: Request) -> SlowWork:
    work: SlowWork = request.app.state.prunes
    return work


@router.post("/prune", response_model=Pruned, summary="Delete what is old", responses=documented(400))
async def prune(
    request: Request, stores: Stores, prunes: Annotated[SlowWork, Depends(_prunes)], prune: Prune
) -> Pruned:
    """Delete jobs and plans that ended so long ago and are not kept, and folders that nothing refers to.

    It needs the scope admin. What has not ended, and what a worker uses, stays. After 20 seconds it stops, and `more`
    in the answer is true: ask again to delete the rest. Only one such request is answered at a time.
    """
    retention.check_admin(request)
    seconds = prune.older_than_days * retention.DAY_SECONDS
    return await prunes.run(
        lambda: retention.prune(stores, seconds, dry_run=prune.dry_run, deadline=retention.Deadline(PRUNE_SECONDS))
    )
