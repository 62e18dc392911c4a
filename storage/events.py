"""What happened to a job or a plan, numbered in the order of the commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update

from storage.database import Database
from storage.errors import NotFoundError
from storage.outbox import queue_webhooks
from storage.schema import events, jobs, now, plan_events, plans

IDS_AT_ONCE = 500


@dataclass(frozen=True)
class History:
    """Of whom events are kept, and where."""

    word: str
    owners: Table
    entries: Table


JOB, PLAN = History("job", jobs, events), History("plan", plans, plan_events)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of a history."""

    number: int
    """From 1, without gaps."""
    at: float
    """Seconds since 1970 by the database's clock."""
    kind: str
    """submitted, claimed, phase, progress, worker_lost, finished, ..."""
    data: dict[str, Any]


def append_events(
    connection: Connection, owner_id: str, entries: Sequence[tuple[str, dict[str, Any]]], of: History = JOB
) -> None:
    """Add events within a transaction.

    The row of the job or plan is locked by the update until the commit, so numbers become visible in their order and a
    reader who has seen number n has seen all before it.
    """
    if not entries:
        return
    owners, key = of.owners, f"{of.word}_id"
    counted = update(owners).where(owners.c.id == owner_id).values(events=owners.c.events + len(entries))
    last = connection.scalar(counted.returning(owners.c.events))
    if last is None:
        raise NotFoundError(f"there is no {of.word} {owner_id}")
    first = last - len(entries) + 1
    rows = [{key: owner_id, "number": first + i, "kind": kind, "data": data} for i, (kind, data) in enumerate(entries)]
    connection.execute(insert(of.entries).values(at=now()), rows)
    for row in rows:
        queue_webhooks(connection, of.word, owners, owner_id, row["number"], row["kind"], row["data"])


def read_events(database: Database, owner_id: str, after: int = 0, limit: int = 1000, of: History = JOB) -> list[Event]:
    """The events after a number, oldest first."""
    entries = of.entries
    query = select(entries).where(entries.c[f"{of.word}_id"] == owner_id, entries.c.number > after)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(entries.c.number).limit(limit))
        return [Event(number=row.number, at=row.at, kind=row.kind, data=row.data) for row in rows]


def count_events(database: Database, owner_ids: Sequence[str], of: History = JOB) -> dict[str, int]:
    """The number of the last event of each of these jobs or plans; of those that exist."""
    counts: dict[str, int] = {}
    with database.reading() as connection:
        for start in range(0, len(owner_ids), IDS_AT_ONCE):
            chunk = of.owners.c.id.in_(owner_ids[start : start + IDS_AT_ONCE])
            rows = connection.execute(select(of.owners.c.id, of.owners.c.events).where(chunk))
            counts |= {row.id: row.events for row in rows}
    return counts
