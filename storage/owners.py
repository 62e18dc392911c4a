"""What the stores of jobs and of plans have in common: submitting once, reading, listing, counting."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, FromClause, Row, and_, func, null, or_, select
from sqlalchemy.exc import IntegrityError

from storage.asked import Asked
from storage.database import Database
from storage.errors import ConflictError
from storage.events import History

Owner = TypeVar("Owner")
"""A job or a plan, which owns events."""


class OwnerStore(ABC, Generic[Owner]):
    """Jobs, or plans, of one database."""

    _history: ClassVar[History]
    _source: ClassVar[FromClause]
    """What rows are selected from."""
    _columns: ClassVar[Sequence[ColumnElement[Any]]]
    _state: ClassVar[ColumnElement[str]]
    """The state that users see."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, id: str) -> Owner:
        """One of them.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.reading() as connection:
            return self._read(connection, id)

    def list(
        self,
        *,
        state: str | None = None,
        limit: int = 50,
        before: tuple[float, str] | None = None,
        specifications: bool = True,
    ) -> list[Owner]:
        """All of them, newest first; of plans only outlines (see :func:`storage.plan_rows.plans_of`).

        Args:
            state: only those in this state.
            limit: at most so many.
            before: ``submitted_at`` and id of the last one of the page before.
            specifications: read them too: with warm starts they are large.
        """
        submitted_at, id = self._history.owners.c.submitted_at, self._history.owners.c.id
        columns = self._columns if specifications else [_without_specification(column) for column in self._columns]
        query = select(*columns).select_from(self._source).order_by(submitted_at.desc(), id.desc()).limit(limit)
        if state is not None:
            query = query.where(self._state.in_([state]))
        if before is not None:
            query = query.where(or_(submitted_at < before[0], and_(submitted_at == before[0], id < before[1])))
        with self._database.reading() as connection:
            return list(self._listed(connection, connection.execute(query).all()))

    def count_by_state(self) -> dict[str, int]:
        """How many are in each state that occurs."""
        counted = select(self._state.label("state"), func.count().label("number")).select_from(self._source)
        with self._database.reading() as connection:
            return {row.state: row.number for row in connection.execute(counted.group_by(self._state))}

    def _submit_once(
        self, insert: Callable[[Connection], str], idempotency_key: str | None, asked: Asked
    ) -> tuple[Owner, bool]:
        """Insert a row, unless its idempotency key was used before for the same request.

        Returns:
            What was inserted, or was inserted then, and whether it is new.

        Raises:
            ConflictError: the key was used for another request.
        """
        try:
            with self._database.writing() as connection:
                return self._read(connection, insert(connection)), True
        except IntegrityError:
            if idempotency_key is None:
                raise
        owners = self._history.owners.c
        known = select(owners.id, owners.request_sha256, owners.spec).where(owners.idempotency_key == idempotency_key)
        with self._database.reading() as connection:
            row = connection.execute(known).one()
            if not asked.repeats(row.request_sha256, row.spec):
                raise ConflictError(
                    f"the idempotency key {idempotency_key!r} was used for another {self._history.word}: {row.id}"
                )
            return self._read(connection, row.id), False

    @abstractmethod
    def _read(self, connection: Connection, id: str) -> Owner:
        """One of them within a transaction."""

    @abstractmethod
    def _listed(self, connection: Connection, rows: Sequence[Row[Any]]) -> Sequence[Owner]:
        """Rows of the columns as values."""


def _without_specification(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return null().label(column.key) if column.key in ("spec", "job_spec") else column
