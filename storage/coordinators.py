"""Which coordinators are alive, and what they have to work with."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select

from storage.database import Database
from storage.evaluations import insert_for
from storage.schema import coordinators, now

FORGOTTEN_AFTER_SECONDS = 24 * 3600
SILENT = func.abs(now() - coordinators.c.seen_at)
"""Seconds since a coordinator reported."""


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """A coordinator as it last reported itself."""

    id: str
    host: str
    process: int
    started_at: float
    seen_at: float
    capacity: dict[str, Any]
    silent_seconds: float
    """Since it was last seen, by the database's clock. A report of the future is of before the clock was set back, and
    as old as it is far away."""


class CoordinatorStore:
    """Heartbeats."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def report(self, coordinator_id: str, host: str, process: int, capacity: dict[str, Any]) -> None:
        """Say that a coordinator is alive; those silent for a day are forgotten."""
        with self._database.writing() as connection:
            values = {"id": coordinator_id, "host": host, "process": process, "capacity": capacity}
            written = insert_for(connection.dialect.name, coordinators).values(
                **values, started_at=now(), seen_at=now()
            )
            seen = {"seen_at": written.excluded.seen_at, "capacity": written.excluded.capacity}
            connection.execute(written.on_conflict_do_update(index_elements=[coordinators.c.id], set_=seen))
            connection.execute(delete(coordinators).where(SILENT > FORGOTTEN_AFTER_SECONDS))

    def leave(self, coordinator_id: str) -> None:
        """Say that a coordinator has stopped in order."""
        with self._database.writing() as connection:
            connection.execute(delete(coordinators).where(coordinators.c.id == coordinator_id))

    def list(self) -> list[Coordinator]:
        """All that were seen within a day, the freshest first."""
        query = select(*coordinators.c, SILENT.label("silent_seconds"))
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(SILENT))
            return [Coordinator(**row._mapping) for row in rows]
