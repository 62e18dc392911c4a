"""Keeping, deleting and ageing out jobs and plans, with their folders and studies; what is in use stays."""

import logging
import random
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from math import inf
from typing import TypeVar

from starlette.requests import Request

from api.problems import RefusedError
from api.records import Records
from api.schemas import Pruned, StorageReport, StoredItem, UnusedFolder, moment
from factor_search.errors import FactorSearchError
from factor_search.report.trackers.registry import FOLDER
from storage.clock import Clock
from storage.dashboard.forget import forget_studies
from storage.errors import ConflictError, NotFoundError
from storage.retention import Owner, Stored
from workers.work_folders import folders_in, remove_folders, size_of

DAY_SECONDS = 86_400.0
FIRST_SECONDS, EVERY_SECONDS, LOOK_SECONDS = 60.0, 3600.0, 60.0
"""Until records are aged out first, between two times, and between two looks at the clock."""
logger = logging.getLogger(__name__)
Item = TypeVar("Item")


class Deadline:
    """A time after which nothing more is begun."""

    def __init__(self, seconds: float) -> None:
        """Seconds from now."""
        self._end = time.monotonic() + seconds
        self.passed = False
        """Whether something was left out."""

    def until(self, items: Iterable[Item]) -> Iterator[Item]:
        """These, as long as there is time."""
        for item in items:
            self.passed = self.passed or time.monotonic() >= self._end
            if self.passed:
                return
            yield item


def check_may_change(request: Request, stores: Records, kind: str, id: str) -> None:
    """Refuse to delete or keep what somebody else has submitted, except to a key of scope admin.

    Raises:
        RefusedError: the key is not enough.
        NotFoundError: there is no such job or plan.
    """
    key = request.scope["state"].get("key")
    if key is None or key.allows("admin") or stores.retention.submitted_by(kind, id) == key.id:
        return
    raise RefusedError(403, f"the key {key.name!r} did not submit {kind} {id}; this needs the scope admin")


def check_admin(request: Request) -> None:
    """Refuse what concerns the records of all users, except to a key of scope admin.

    Raises:
        RefusedError: the key is not enough.
    """
    key = request.scope["state"].get("key")
    if key is not None and not key.allows("admin"):
        raise RefusedError(403, f"the key {key.name!r} may {key.scopes[0]}; this needs the scope admin")


def report(stores: Records, limit: int, before: tuple[float, str] | None) -> tuple[StorageReport, Stored | None]:
    """A page of what is stored, and the last row of it if there are more."""
    work, usage = stores.settings.policy.work_folder, stores.retention.usage()
    rows = stores.retention.stored(limit=limit + 1, before=before)
    folders = folders_in(work)
    sizes = {name: size_of(work / name) for name in folders} if work else {}
    unused = sorted(stores.retention.unused(folders))
    shown = StorageReport(
        database_bytes=usage.bytes,
        free_bytes=usage.free_bytes,
        evaluations=usage.evaluations,
        folder_bytes=sum(sizes.values()),
        unused_folders=[UnusedFolder(name=name, bytes=sizes[name]) for name in unused],
        items=[_shown(row, sizes) for row in rows[:limit]],
        next=None,
    )
    return shown, rows[limit - 1] if len(rows) > limit else None


def delete(stores: Records, kind: str, id: str) -> None:
    """Delete a job or plan that has ended.

    Raises:
        NotFoundError: there is none.
        ConflictError: it has not ended, or is a stage of a plan.
    """
    jobs, folders = stores.retention.delete(kind, id)
    _clean(stores, jobs, folders)


def prune(
    stores: Records, older_than_seconds: float, *, dry_run: bool = False, deadline: Deadline | None = None
) -> Pruned:
    """Delete what ended longer ago than this and is not kept, and folders that nothing refers to.

    Args:
        stores: the records.
        older_than_seconds: seconds since the end of what is deleted.
        dry_run: only tell what would be deleted.
        deadline: when to stop; a next call continues.

    Raises:
        DatabaseError: the database cannot be reached; what was deleted before is.
    """
    work, deadline = stores.settings.policy.work_folder, deadline or Deadline(inf)
    items: list[StoredItem] = []
    jobs: list[str] = []
    folders: list[str] = []
    for owner in deadline.until(_due(stores, older_than_seconds)):
        row = stores.retention.sized(owner)
        shown = _shown(row, {name: size_of(work / name) for name in row.folders} if work else {})
        if not dry_run:
            try:
                gone = stores.retention.delete(row.kind, row.id, older_than_seconds=older_than_seconds)
            except (ConflictError, NotFoundError):  # it was retried, kept or deleted meanwhile
                continue
            jobs, folders = [*jobs, *gone.jobs], [*folders, *gone.folders]
        items.append(shown)
    found = folders_in(work)
    random.shuffle(found)  # so that repeated calls look at all, however many of the first are in use
    left = sorted(stores.retention.unused(deadline.until(found)))
    if not dry_run:
        freed = _clean(stores, jobs, deadline.until(dict.fromkeys([*folders, *left])))
    else:
        freed = sum(size_of(work / name) for name in deadline.until(left)) if work else 0
    return Pruned(
        items=items,
        folders=left if dry_run else sorted(set(folders) | set(left)),
        folder_bytes=freed,
        dry_run=dry_run,
        more=deadline.passed,
    )


def _due(stores: Records, older_than_seconds: float) -> Iterator[Owner]:
    last: Owner | None = None
    while due := stores.retention.due(older_than_seconds, after=last):
        yield from due
        last = due[-1]


def _clean(stores: Records, jobs: Collection[str], folders: Iterable[str]) -> int:
    """Remove what deleted records leave elsewhere; folders that cannot be removed now, the next time removes."""
    freed = 0
    try:
        work = stores.settings.policy.work_folder
        freed = remove_folders(work, folders, stores.retention.unused)
        if work is not None:
            for job in jobs:
                shutil.rmtree(work / FOLDER / job, ignore_errors=True)
        if stores.settings.optuna_url is not None:
            forget_studies(stores.settings.optuna_url, set(jobs))
        stores.retention.give_space_back()
    except FactorSearchError as error:
        logger.warning("what was deleted still takes space: %s", error)
    return freed


def _shown(row: Stored, sizes: dict[str, int]) -> StoredItem:
    return StoredItem(
        kind=row.kind,
        id=row.id,
        name=row.name,
        state=row.state,
        submitted_at=moment(row.submitted_at),
        ended_at=None if row.ended_at is None else moment(row.ended_at),
        kept=row.kept,
        database_bytes=row.bytes,
        folder_bytes=sum(sizes.get(name, 0) for name in row.folders),
    )


class Ageing:
    """A thread that ages out records of a server, until it is stopped."""

    def __init__(self, stores: Records, keep_days: float) -> None:
        """Start."""
        self._stores, self._seconds = stores, keep_days * DAY_SECONDS
        self._stop = threading.Event()
        self._clock = Clock()
        threading.Thread(target=self._run, name="ageing", daemon=True).start()

    def stop(self) -> None:
        """Do not begin again."""
        self._stop.set()

    def _run(self) -> None:
        due = time.monotonic() + FIRST_SECONDS
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._clock.saw(self._stores.retention.clock())
                # all that was ended before a clock was set forward looks old
                if time.monotonic() < due or self._clock.stepped_within(EVERY_SECONDS):
                    continue
                due = time.monotonic() + EVERY_SECONDS
                pruned = prune(self._stores, self._seconds)
                if pruned.items:
                    logger.info("aged out %d jobs and plans", len(pruned.items))
            except FactorSearchError as error:
                logger.warning("nothing is aged out now: %s", error)
            except Exception:
                logger.exception("internal error while records are aged out, which is tried again")
                due = time.monotonic() + EVERY_SECONDS
