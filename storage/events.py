"""What happened to a job, numbered in the order of the commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from storage.database import Database
from storage.errors import NotFoundError
from storage.schema import events, jobs, now


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of a job's history."""

    number: int
    """From 1, without gaps."""
    at: float
    """Seconds since 1970 by the database's clock."""
    kind: str
    """submitted, claimed, phase, progress, worker_lost, finished, ..."""
    data: dict[str, Any]


def append_events(connection: Connection, job_id: str, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Add events within a transaction.

    The job's row is locked by the update until the commit, so numbers become visible in their order and a reader who
    has seen number n has seen all before it.
    """
    if not entries:
        return
    counted = update(jobs).where(jobs.c.id == job_id).values(events=jobs.c.events + len(entries))
    last = connection.scalar(counted.returning(jobs.c.events))
    if last is None:
        raise NotFoundError(f"there is no job {job_id}")
    first = last - len(entries) + 1
    rows = [
        {"job_id": job_id, "number": first + i, "kind": kind, "data": data} for i, (kind, data) in enumerate(entries)
    ]
    connection.execute(insert(events).values(at=now()), rows)


def read_events(database: Database, job_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
    """The events after a number, oldest first."""
    query = select(events).where(events.c.job_id == job_id, events.c.number > after)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(events.c.number).limit(limit))
        return [Event(number=row.number, at=row.at, kind=row.kind, data=row.data) for row in rows]
