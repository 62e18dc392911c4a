"""One database, SQLite or PostgreSQL: connections, transactions, migrations."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from factor_search.errors import one_line
from factor_search.visible import masked
from storage.errors import DatabaseError, MissingDatabaseError
from storage.schema import metadata

VERSION_TABLE = "factor_search_version"
"""Optuna's own Alembic keeps the default name in the same database."""
BUSY_SECONDS = 30
MIGRATION_LOCK = 0x0FAC7025
POOL_SIZE = 8
MIGRATIONS = Path(__file__).parent / "migrations"
AWAY_STATES = ("08", "25006", "53", "57", "58")
"""SQLSTATEs of a PostgreSQL that cannot serve just now: connection, read-only standby, resources, operator, system."""
DAMAGED_STATES = ("XX001", "XX002", "53100")
"""SQLSTATEs of a PostgreSQL whose tables or indexes are damaged, or whose disk is full."""
DAMAGED_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
KEEPALIVES = {"keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
"""A PostgreSQL that silently vanished from the network is noticed in half a minute."""


class Database:
    """A database that is migrated to this version when opened."""

    def __init__(
        self, url: str, *, migrate: bool = True, busy_seconds: float = BUSY_SECONDS, pool_size: int = POOL_SIZE
    ) -> None:
        """Open it.

        Args:
            url: ``sqlite:///file.db`` or ``postgresql://user:password@host/name``.
            migrate: bring the tables to this version; refuses a database of a newer one.
            busy_seconds: how long to wait for SQLite's locks, or for a connection to PostgreSQL.
            pool_size: connections that stay open.

        Raises:
            DatabaseError: the URL is malformed, or the database cannot be reached, opened or migrated.
        """
        self.url = url
        self.engine = _engine(url, busy_seconds, pool_size)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.file = Path(str(self.engine.url.database)) if self.is_sqlite else None
        """Of an SQLite database."""
        self.shown = make_url(url).render_as_string(hide_password=True)
        self.damage: tuple[float, BaseException] | None = None
        """When a statement last met damaged tables or a full disk (monotonic seconds), and what it said."""
        self._inode: tuple[int, int] | None = None
        if migrate:
            try:
                self._migrate()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def check_version(self) -> str:
        """What is to be said of the version of the tables, in a few words after "answers"; empty if it is this one.

        Raises:
            DatabaseError: they are of a newer version, or another program's.
        """
        newest = ScriptDirectory(str(MIGRATIONS)).get_current_head()
        with self.reading() as connection:
            names = set(inspect(connection).get_table_names())
            if VERSION_TABLE not in names:
                foreign = sorted(names & set(metadata.tables))
                if foreign:
                    raise DatabaseError(f"{self.shown} belongs to another program: it has a table {foreign[0]}")
                return ", without our tables yet"
            version = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
        if version == newest:
            return ""
        if any(revision.revision == version for revision in ScriptDirectory(str(MIGRATIONS)).walk_revisions()):
            return ", to be migrated at the next start"
        raise DatabaseError(f"the tables in {self.shown} are of a newer version: update factor-search")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a transaction that only reads.

        Raises:
            DatabaseError: the database cannot be reached now.
        """
        self.check_file()
        with self._explained(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that writes, committed at the end of the block.

        On SQLite it takes the write lock at once: a transaction that began by reading could not get it any more if
        somebody else wrote in between.

        Raises:
            DatabaseError: the database cannot be reached now; nothing was written, or (only if the connection broke in
                the commit) all of it.
        """
        self.check_file()
        with self._explained(), self.engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                yield connection
                self.check_file()

    def check_file(self) -> None:
        """Refuse an SQLite file that was deleted or replaced: what is written to the open one would be lost.

        Raises:
            MissingDatabaseError: the path leads to another file than the one that was opened, or to none.
        """
        if self.file is None:
            return
        try:
            found = os.stat(self.file)
        except OSError:
            inode = None
        else:
            inode = (found.st_dev, found.st_ino)
        if self._inode is None:
            self._inode = inode  # not there before the first connection creates it
        elif inode != self._inode:
            what = "deleted" if inode is None else "replaced"
            raise MissingDatabaseError(
                f"the file of the database {self.shown} was {what} while it was open: "
                "stop the service, put the file back, and start the service again"
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[Any]:
        """A connection of the driver outside transactions, for what SQLite does in none.

        Raises:
            DatabaseError: the database cannot be used now.
        """
        with self._explained():
            connection = self.engine.raw_connection()
            try:
                yield connection.driver_connection
            finally:
                connection.close()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        self.check_version()
        with self.writing() as connection:
            if not self.is_sqlite:  # SQLite's write lock is held already
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise DatabaseError(
                    f"the tables in {self.shown} are not of this version: {one_line(error)}; update factor-search"
                ) from None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeoutError, sqlite3.OperationalError) as error:
            orig = getattr(error, "orig", error)
            self._is_damage(orig)
            raise DatabaseError(f"cannot use the database {self.shown}: {one_line(orig)}") from error
        except (DBAPIError, sqlite3.DatabaseError) as error:
            orig = getattr(error, "orig", error)
            away = str(getattr(orig, "sqlstate", None)).startswith(AWAY_STATES)
            if not (away or getattr(error, "connection_invalidated", False) or self._is_damage(orig)):
                raise
            raise DatabaseError(f"cannot use the database {self.shown}: {one_line(orig or error)}") from error

    def _is_damage(self, error: BaseException | None) -> bool:
        """Whether an error says that tables are damaged or the disk is full; if so it is kept for :attr:`damage`."""
        state, code = getattr(error, "sqlstate", None), getattr(error, "sqlite_errorcode", None)
        if error is None or not (state in DAMAGED_STATES or (code is not None and code & 0xFF in DAMAGED_CODES)):
            return False
        self.damage = (time.monotonic(), error)
        return True


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None of another.

    Raises:
        DatabaseError: the URL is malformed.
    """
    engine = _engine(url, BUSY_SECONDS, POOL_SIZE)
    return Path(str(engine.url.database)) if engine.dialect.name == "sqlite" else None


def _engine(url: str, busy_seconds: float, pool_size: int) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise DatabaseError(f"a {parsed.get_backend_name()} database is not supported: sqlite or postgresql")
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(url, busy_seconds, pool_size)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        connect_seconds = max(2, min(10, round(busy_seconds)))  # libpq rounds 1 up to 2
        arguments = {"connect_timeout": connect_seconds, "application_name": "factor-search", **KEEPALIVES}
        return create_engine(parsed, pool_pre_ping=True, pool_size=pool_size, connect_args=arguments)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:  # of a port in words
        raise DatabaseError(
            f"{masked(url)!r} is not a database URL (sqlite:///file.db, postgresql://...): {one_line(error)}"
        ) from None


def _sqlite(url: str, busy_seconds: float, pool_size: int) -> Engine:
    file = make_url(url).database
    if not file or file == ":memory:":
        raise DatabaseError("an SQLite database must be a file, since several processes use it: sqlite:///file.db")
    if not Path(file).absolute().parent.is_dir():
        raise DatabaseError(f"there is no folder {Path(file).absolute().parent} for the database")
    engine = create_engine(url, connect_args={"timeout": busy_seconds, "check_same_thread": False}, pool_size=pool_size)
    set_up_sqlite(engine)
    return engine


def set_up_sqlite(engine: Engine) -> None:
    """Let several processes use a file: readers beside one writer, transactions that say whether they will write."""

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        pragmas = ["journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"]
        if connection.execute("PRAGMA page_count").fetchone() == (0,):
            pragmas.insert(0, "auto_vacuum=INCREMENTAL")  # from the first page; on an old file it waits for writers
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get("writing")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
