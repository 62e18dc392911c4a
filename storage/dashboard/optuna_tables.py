"""Optuna's own tables: opened for several processes at once, and finished trials written many at a time.

Optuna writes a trial in some forty statements, 16 ms of Python; here a batch of them takes as many statements as there
are tables. It is only done on the version of the tables that this was written for; on any other, trials go one by one
through Optuna's own interface.
"""

import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, NullPool, column, create_engine, func, insert, select, table
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from factor_search.errors import one_line
from storage.dashboard.optuna_reading import TABLES, QuickStorage
from storage.database import BUSY_SECONDS, set_up_sqlite
from storage.errors import DatabaseError

CREATION_ATTEMPTS = 8
CREATION_LOCK = 0x0FAC7026
CONNECT_SECONDS = 10

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_optuna(url: str, kind: type[QuickStorage] = QuickStorage) -> QuickStorage:
    """Open Optuna's storage, with its tables created if need be, also by several processes at once.

    Raises:
        DatabaseError: it cannot be reached, or its tables are of another version of Optuna.
    """
    parsed = make_url(url)
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS, "check_same_thread": False}}
    if parsed.get_backend_name() == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        # what is lost in a crash is written again, since our own mark is committed later and in full
        arguments = {
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "factor-search",
            "options": "-csynchronous_commit=off",
        }
        options = {"connect_args": arguments, "pool_pre_ping": True}
    template = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    try:
        with _creating_alone(parsed):
            storage = _create(kind, template, options)
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        shown = parsed.render_as_string(hide_password=True)
        raise DatabaseError(f"cannot use Optuna's tables in {shown}: {one_line(error)}") from error
    if storage.engine.dialect.name == "sqlite":
        set_up_sqlite(storage.engine)
        storage.engine.dispose()  # connections of before would stay as they are
    return storage


@contextlib.contextmanager
def _creating_alone(url: URL) -> Iterator[None]:
    """Optuna looks which tables there are and creates the others: of two that do so at once, one fails."""
    if url.get_backend_name() != "postgresql":
        yield
        return
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
    with engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(CREATION_LOCK)))
        yield


def _create(kind: type[QuickStorage], url: str, options: dict[str, Any]) -> QuickStorage:
    """A file has no such lock: whoever comes second tries again, and finds the tables there."""
    for attempt in range(CREATION_ATTEMPTS):
        try:
            return kind(url, engine_kwargs=options)
        except (SQLAlchemyError, StorageInternalError) as error:
            raced = any(word in str(error.__cause__ or error) for word in ("already exists", "locked", "UNIQUE"))
            if attempt == CREATION_ATTEMPTS - 1 or not raced:
                raise
        time.sleep(random.uniform(0.05, 0.2) * (attempt + 1))
    raise AssertionError


@contextlib.contextmanager
def one_transaction(storage: QuickStorage) -> Iterator[Connection]:
    """Everything that this thread writes through the storage within the block, committed at once or not at all.

    Optuna commits after every attribute; here such a commit only ends a savepoint. A reader never sees half a figure.
    """
    writing = storage.engine.execution_options(writing=True)
    sessions = storage.scoped_session
    with writing.begin() as connection:
        sessions.remove()
        sessions.configure(bind=connection, join_transaction_mode="create_savepoint")
        try:
            yield connection
        finally:
            sessions.remove()
            sessions.configure(bind=storage.engine, join_transaction_mode="conditional_savepoint")


class TrialTables:
    """Inserts trials as Optuna's ``create_new_trial`` would, in a few statements for all of them."""

    def __init__(self, storage: QuickStorage) -> None:
        self._storage = storage

    def lock(self, connection: Connection, study_id: int) -> None:
        """Hold a study against other writers until the end of the transaction.

        Raises:
            DatabaseError: it was deleted.
        """
        studies = table("studies", column("study_id"))
        held = select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()
        if connection.scalar(held) is None:  # SQLite's transaction holds the whole file already
            raise DatabaseError(f"the study {study_id} was deleted from Optuna's tables")

    def insert(self, connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> list[int]:
        """Append trials to a study within :func:`one_transaction`; returns their ids.

        The caller holds the study against other writers, since numbers are counted.
        """
        tables = self._storage.known_tables
        if tables is None:
            return [self._storage.create_new_trial(study_id, trial) for trial in trials]
        counted = select(func.count()).where(tables["trials"].c.study_id == study_id)
        first: int = connection.scalar(counted) or 0
        rows = [
            {
                "number": number,
                "study_id": study_id,
                "state": trial.state.name,
                "datetime_start": _utc(trial.datetime_start),
                "datetime_complete": _utc(trial.datetime_complete),
            }
            for number, trial in enumerate(trials, start=first)
        ]
        inserted = insert(tables["trials"]).returning(tables["trials"].c.trial_id, sort_by_parameter_order=True)
        ids = list(connection.execute(inserted, rows).scalars())
        for name, contents in _contents(ids, trials).items():
            if contents:
                connection.execute(insert(tables[name]), contents)
        return ids


def _contents(ids: Sequence[int], trials: Sequence[FrozenTrial]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the tables that belong to trials."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES[1:]}
    for trial_id, trial in zip(ids, trials, strict=True):
        if trial.value is not None:
            objective = {"objective": 0, "value": trial.value, "value_type": "FINITE"}
            rows["trial_values"].append({"trial_id": trial_id, **objective})
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            param = {"param_name": name, "param_value": distribution.to_internal_repr(value)}
            param["distribution_json"] = distribution_to_json(distribution)
            rows["trial_params"].append({"trial_id": trial_id, **param})
        for key, value in trial.user_attrs.items():
            rows["trial_user_attributes"].append({"trial_id": trial_id, "key": key, "value_json": json.dumps(value)})
        for step, seen_value in trial.intermediate_values.items():
            seen = {"step": step, "intermediate_value": seen_value, "intermediate_value_type": "FINITE"}
            rows["trial_intermediate_values"].append({"trial_id": trial_id, **seen})
    return rows


def _utc(local: datetime | None) -> datetime | None:
    """Optuna keeps naive UTC and shows naive local time."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)
