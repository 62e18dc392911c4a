"""The routes of what the service stores: its size, and its deletion by age."""

import re
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from api import retention
from api.cursors import JOB_ID, PLAN_ID, decode_cursor, encode_cursor
from api.problems import documented
from api.routes.resource import Checks, Stores, Writes
from api.schemas import Prune, Pruned, StorageReport

ID = re.compile(f"{JOB_ID.pattern}|{PLAN_ID.pattern}")
router = APIRouter(prefix="/v1/storage", tags=["storage"], responses=documented(401, 403, 408, 422, 429, 503))


@router.get("", response_model=StorageReport, summary="What is stored")
async def report(
    stores: Stores,
    checks: Checks,
    limit: Annotated[int, Query(ge=1, le=200, description="At most so many jobs and plans.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> StorageReport:
    """The size of the database and of the work folder, and of jobs and plans, newest first."""
    before = None if cursor is None else decode_cursor(cursor, ID)
    page, last = await checks.run(lambda: retention.report(stores, limit, before))
    following = None if last is None else encode_cursor(last.submitted_at, last.id)
    return page.model_copy(update={"next": following})


@router.post("/prune", response_model=Pruned, summary="Delete what is old", responses=documented(400, 413))
async def prune(request: Request, stores: Stores, writes: Writes, prune: Prune) -> Pruned:
    """Delete jobs and plans that ended so long ago and are not kept, and folders that nothing refers to.

    It needs the scope admin. What has not ended, and what a worker uses, stays.
    """
    retention.check_admin(request)
    seconds = prune.older_than_days * retention.DAY_SECONDS
    return await writes.run(lambda: retention.prune(stores, seconds, dry_run=prune.dry_run))
