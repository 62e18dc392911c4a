"""What is stored of jobs and plans, with its size: listed, kept under a name, deleted, aged out.

A plan goes with all jobs of its stages, except those whose results another plan has reused. An evaluation goes with the
job that had it computed, or with the last job that has a candidate with its key. What has not ended is never touched.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Table,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
    update,
)

from storage.database import Database
from storage.errors import ConflictError, NotFoundError
from storage.job_rows import SEARCHES, work_folder_name
from storage.plan_rows import PRESENT, STATE
from storage.schema import candidates, evaluations, events, jobs, now, plan_events, plan_stages, plans, searches
from storage.states import ENDED

RETENTION_LOCK = 0x0FAC7027
"""On PostgreSQL, held by whoever deletes, and shared by whoever records that a candidate is done."""
JOB, PLAN = "job", "plan"
ROW_BYTES = 200
"""Taken for numbers, keys and indexes of a row, beside its texts."""
WASTE_SHARE, WASTE_BYTES = 0.25, 2**26
"""An SQLite file of version 0.1.0 is rewritten when so much of it is free."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A job outside plans, or a plan."""

    kind: str
    """``job`` or ``plan``."""
    id: str
    name: str
    state: str
    submitted_at: float
    ended_at: float | None
    kept: str | None
    """The name under which it is kept."""


@dataclass(frozen=True, kw_only=True)
class Stored(Owner):
    """The same with the space it takes."""

    bytes: int
    """In the database, evaluations that it had computed included; about."""
    folders: tuple[str, ...]
    """Names of its folders in the work folder."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The space that the database takes."""

    bytes: int
    free_bytes: int
    """Of them, for new records."""
    evaluations: int
    """How many are stored."""


class Deleted(NamedTuple):
    """What a deletion leaves to be removed elsewhere."""

    jobs: list[str]
    """Ids of the jobs that it deleted."""
    folders: list[str]
    """Names of folders in the work folder that nothing left refers to."""


class RetentionStore:
    """Listing, keeping and deleting what has ended."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def usage(self) -> Usage:
        """The size of the database."""
        with self._database.reading() as connection:
            count = connection.scalar(select(func.count()).select_from(evaluations)) or 0
            if self._database.is_sqlite:
                pages, free, size = (
                    connection.execute(text(f"PRAGMA {name}")).scalar_one()
                    for name in ("page_count", "freelist_count", "page_size")
                )
                return Usage(bytes=pages * size, free_bytes=free * size, evaluations=count)
            whole = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
            return Usage(bytes=whole, free_bytes=0, evaluations=count)

    def stored(self, *, limit: int = 100, before: tuple[float, str] | None = None) -> list[Stored]:
        """Jobs and plans with their sizes, newest first; see :meth:`storage.owners.OwnerStore.list`."""
        owners = _OWNERS.c
        query = select(_OWNERS).order_by(owners.submitted_at.desc(), owners.id.desc()).limit(limit)
        if before is not None:
            earlier = and_(owners.submitted_at == before[0], owners.id < before[1])
            query = query.where(or_(owners.submitted_at < before[0], earlier))
        with self._database.reading() as connection:
            return [_sized(connection, _owner(row)) for row in connection.execute(query).all()]

    def sized(self, owner: Owner) -> Stored:
        """A job or plan with the space it takes."""
        with self._database.reading() as connection:
            return _sized(connection, owner)

    def due(self, older_than_seconds: float, *, limit: int = 1000, after: Owner | None = None) -> list[Owner]:
        """What ended longer ago than this and is not kept, the oldest first; only what comes after one of these."""
        owners = _OWNERS.c
        old = and_(owners.ended_at < now() - older_than_seconds, owners.kept.is_(None), owners.state.in_(ENDED))
        query = select(_OWNERS).where(old).order_by(owners.ended_at, owners.id).limit(limit)
        if after is not None:
            same = and_(owners.ended_at == after.ended_at, owners.id > after.id)
            query = query.where(or_(owners.ended_at > after.ended_at, same))
        with self._database.reading() as connection:
            return [_owner(row) for row in connection.execute(query).all()]

    def clock(self) -> float:
        """The database's clock, seconds since 1970."""
        with self._database.reading() as connection:
            return float(connection.execute(select(now())).scalar_one())

    def submitted_by(self, kind: str, id: str) -> str | None:
        """The id of the API key that submitted a job or plan.

        Raises:
            NotFoundError: there is no such job or plan.
        """
        owners = _table(kind)
        with self._database.reading() as connection:
            row = connection.execute(select(owners.c.submitted_by).where(owners.c.id == id)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no {kind} {id}")
        found: str | None = row.submitted_by
        return found

    def keep(self, kind: str, id: str, name: str | None) -> None:
        """Keep a job or plan under a name, whatever its age, or with None no longer.

        Raises:
            NotFoundError: there is no such job or plan.
            ConflictError: the job is a stage of a plan.
        """
        with self._database.writing() as connection:
            if kind == JOB:
                _check_alone(connection, id, "keep")
            kept = update(_table(kind)).where(_table(kind).c.id == id).values(kept=name)
            if connection.execute(kept).rowcount != 1:
                raise NotFoundError(f"there is no {kind} {id}")

    def delete(self, kind: str, id: str, *, older_than_seconds: float | None = None) -> Deleted:
        """Delete a job or plan that has ended, in one transaction.

        Args:
            kind: ``job`` or ``plan``.
            id: which.
            older_than_seconds: only if it ended longer ago than this and is not kept, as it was when it was chosen.

        Raises:
            NotFoundError: there is no such job or plan.
            ConflictError: it has not ended, it is a stage of a plan, or it is kept or too young.
        """
        with self._database.writing() as connection:
            lock_retention(connection)
            _check_ended(connection, kind, id, older_than_seconds)
            if kind == JOB:
                _check_alone(connection, id, "delete")
                gone = [id]
            else:
                gone = _let_go_of_reused(connection, id, _ended_jobs(connection, id))
                connection.execute(delete(plans).where(plans.c.id == id))
            folders = _folders_of(connection, jobs.c.id.in_(gone))
            _delete_evaluations(connection, gone)
            connection.execute(delete(jobs).where(jobs.c.id.in_(gone)))
            return Deleted(gone, [name for name in folders if not _is_mentioned(connection, name)])

    def unused(self, folders: Iterable[str]) -> set[str]:
        """Those of these folders of the work folder that nothing stored refers to."""
        with self._database.reading() as connection:
            return {name for name in folders if not _is_mentioned(connection, name)}

    def gone(self, job_ids: Sequence[str]) -> set[str]:
        """Those of these jobs that do not exist."""
        found: set[str] = set()
        with self._database.reading() as connection:
            for start in range(0, len(job_ids), 500):
                found.update(connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(job_ids[start : start + 500]))))
        return set(job_ids) - found

    def give_space_back(self) -> None:
        """Shrink an SQLite file by its free pages; PostgreSQL's autovacuum makes space usable again by itself.

        A file of version 0.1.0 cannot shrink page by page: it is rewritten once, when a quarter of it is free.

        Raises:
            DatabaseError: the file is locked for too long, or cannot be written.
        """
        if not self._database.is_sqlite:
            return
        with self._database.alone() as connection:
            steps = connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            if steps:
                connection.executescript("PRAGMA incremental_vacuum")  # execute would free one page
            elif free * size >= WASTE_BYTES and free >= WASTE_SHARE * pages:
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # takes effect with what follows
                connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def lock_retention(connection: Connection, *, shared: bool = False) -> None:
    """Keep deletions apart from who records that candidates are done; on SQLite all writers are apart.

    The result of one may be that of a job which is being deleted, whether it was looked up or computed again.
    """
    if connection.dialect.name == "postgresql":
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        connection.execute(text(f"SELECT {function}(:lock)"), {"lock": RETENTION_LOCK})


def _table(kind: str) -> Table:
    return plans if kind == PLAN else jobs


_SHOWN = ("id", "name", "submitted_at", "ended_at", "kept")
_OWNERS = union_all(
    select(literal(JOB).label("kind"), *(jobs.c[name] for name in _SHOWN), jobs.c.state.label("state")).where(
        jobs.c.plan_id.is_(None)
    ),
    select(literal(PLAN).label("kind"), *(plans.c[name] for name in _SHOWN), STATE.label("state")).select_from(PRESENT),
).subquery("owners")


def _owner(row: Any) -> Owner:
    return Owner(kind=row.kind, state=row.state, **{name: getattr(row, name) for name in _SHOWN})


def _sized(connection: Connection, owner: Owner) -> Stored:
    return Stored(
        **vars(owner),
        bytes=_bytes_of(connection, owner.kind, owner.id),
        folders=tuple(_folders_of(connection, jobs.c.plan_id == owner.id)) if owner.kind == PLAN else (),
    )


def _bytes_of(connection: Connection, kind: str, id: str) -> int:
    """The texts of all rows that belong to a job or plan, and something for each row."""
    ours = jobs.c.id == id if kind == JOB else jobs.c.plan_id == id
    ids = select(jobs.c.id).where(ours)
    parts = [
        _text_bytes(jobs, ours, "spec", "progress", "factors", "report", "outcome"),
        _text_bytes(searches, searches.c.job_id.in_(ids), "prepared"),
        _text_bytes(candidates, candidates.c.job_id.in_(ids), "factors", "losses_so_far", "key"),
        _text_bytes(events, events.c.job_id.in_(ids), "data"),
        _text_bytes(evaluations, evaluations.c.job_id.in_(ids), "factors", "losses", "tokens", "losses_at", "key"),
    ]
    if kind == PLAN:
        parts += [
            _text_bytes(plans, plans.c.id == id, "spec"),
            _text_bytes(plan_stages, plan_stages.c.plan_id == id, "work", "outcome"),
            _text_bytes(plan_events, plan_events.c.plan_id == id, "data"),
        ]
    return sum(int(connection.scalar(part) or 0) for part in parts)


def _text_bytes(table: Table, ours: ColumnElement[bool], *names: str) -> Any:
    lengths: list[ColumnElement[int]] = [func.coalesce(func.length(_as_text(table.c[name])), 0) for name in names]
    each: Any = literal(ROW_BYTES)
    for length in lengths:
        each = each + length
    return select(func.sum(each)).where(ours)


def _as_text(column: Column[Any]) -> ColumnElement[str]:
    return cast(column, Text)


def _folders_of(connection: Connection, ours: ColumnElement[bool]) -> list[str]:
    work = select(jobs.c.kind, jobs.c.spec_sha256).where(ours, jobs.c.kind.not_in(SEARCHES)).distinct()
    return sorted({work_folder_name(row.kind, row.spec_sha256) for row in connection.execute(work)})


def _is_mentioned(connection: Connection, folder: str) -> bool:
    """Whether a job or plan has a folder, or names a file in it: as its model, its documents or in its outcome."""
    kind, _, sha256 = folder.rpartition("-")
    texts = [jobs.c.spec, jobs.c.outcome, plans.c.spec, plan_stages.c.work, plan_stages.c.outcome]
    mentions = [exists().where(_as_text(column).contains(folder, autoescape=True)) for column in texts]
    own = exists().where(jobs.c.kind == kind, jobs.c.spec_sha256.startswith(sha256, autoescape=True))
    return any(connection.scalar(select(found)) for found in (own, *mentions))


def _check_ended(connection: Connection, kind: str, id: str, older_than_seconds: float | None) -> None:
    """Lock the row of a job or plan, and refuse to delete it unless it has ended, and is as old as was asked for."""
    owners = _table(kind)
    age = now() - owners.c.ended_at
    query = select(owners.c.state, owners.c.kept, age.label("age")).where(owners.c.id == id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no {kind} {id}")
    if row.state not in ENDED:
        raise ConflictError(f"{kind} {id} is {row.state}: only one that has ended can be deleted; cancel it first")
    if older_than_seconds is not None and (row.kept is not None or row.age is None or row.age <= older_than_seconds):
        raise ConflictError(f"{kind} {id} is kept, or ended too recently")


def _check_alone(connection: Connection, job_id: str, verb: str) -> None:
    plan_id = connection.scalar(select(jobs.c.plan_id).where(jobs.c.id == job_id))
    if plan_id is not None:
        raise ConflictError(f"job {job_id} is a stage of the plan {plan_id}: {verb} the plan")


def _ended_jobs(connection: Connection, plan_id: str) -> list[str]:
    """The jobs of a plan, locked."""
    query = select(jobs.c.id, jobs.c.state).where(jobs.c.plan_id == plan_id).order_by(jobs.c.id).with_for_update()
    rows = connection.execute(query).all()
    for row in rows:
        if row.state not in ENDED:
            raise ConflictError(f"the job {row.id} of plan {plan_id} is still being ended: try again soon")
    return [row.id for row in rows]


def _let_go_of_reused(connection: Connection, plan_id: str, ours: Sequence[str]) -> list[str]:
    """Give jobs whose results other plans have reused to one of these; returns the others."""
    reused = select(plan_stages.c.job_id, plan_stages.c.plan_id, plan_stages.c.name).where(
        plan_stages.c.job_id.in_(ours), plan_stages.c.plan_id != plan_id
    )
    heirs = {row.job_id: row for row in connection.execute(reused)}
    for row in heirs.values():
        given = update(jobs).where(jobs.c.id == row.job_id)
        connection.execute(given.values(plan_id=row.plan_id, plan_stage=row.name))
    return [job_id for job_id in ours if job_id not in heirs]


def _delete_evaluations(connection: Connection, gone: Sequence[str]) -> None:
    """Delete the evaluations of these jobs that no other job has a candidate for or had computed."""
    theirs = or_(
        evaluations.c.job_id.in_(gone),
        evaluations.c.key.in_(select(candidates.c.key).where(candidates.c.job_id.in_(gone))),
    )
    used = exists().where(candidates.c.key == evaluations.c.key, candidates.c.job_id.not_in(gone))
    owned = exists().where(jobs.c.id == evaluations.c.job_id, jobs.c.id.not_in(gone))
    connection.execute(delete(evaluations).where(theirs, ~used, ~owned))
