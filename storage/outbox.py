"""Webhooks that are to be sent, queued in the transaction that changes the state they tell of."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from storage.schema import deliveries, now

EVENTS = {
    "job": frozenset({"finished", "failed", "cancelled"}),
    "plan": frozenset({"finished", "failed", "cancelled", "waiting"}),
}
"""Kinds of events that webhooks may tell of; a job has an event ``waiting`` too, for the capacity it needs."""
MOST_CHARACTERS = 1000
"""Of a text in a body, such as an error."""
TOLD = ("stage", "winner", "perplexity", "ended", "error")
"""What a body has of an event's data."""


def queue_webhooks(
    connection: Connection, word: str, owners: Table, owner_id: str, number: int, kind: str, data: Mapping[str, Any]
) -> None:
    """Queue the webhooks that a job or plan has for an event, if any.

    Args:
        connection: in the transaction of the event.
        word: ``job`` or ``plan``.
        owners: their table.
        owner_id: the job or plan.
        number: of the event.
        kind: of the event.
        data: of the event.
    """
    if kind not in EVENTS[word]:
        return
    found = select(owners.c.name, owners.c.spec, now().label("at")).where(owners.c.id == owner_id)
    row = connection.execute(found).one()
    wanted = [hook for hook in row.spec.get("webhooks", ()) if kind in hook["events"]]
    if not wanted:
        return
    told = {key: data[key] for key in TOLD if data.get(key) is not None}
    told = {key: value[:MOST_CHARACTERS] if isinstance(value, str) else value for key, value in told.items()}
    body = {
        "type": f"{word}.{kind}",
        "timestamp": datetime.fromtimestamp(row.at, UTC).isoformat(),
        "data": {"id": owner_id, "name": row.name[:MOST_CHARACTERS], "state": kind, **told},
    }
    values = {f"{word}_id": owner_id, "body": json.dumps(body), "made_at": row.at, "due_at": row.at, "attempts": 0}
    rows = [{"id": f"{owner_id}-{number}-{place}", "url": hook["url"], **values} for place, hook in enumerate(wanted)]
    connection.execute(insert(deliveries), rows)
