"""Whether a database can serve: looked at apart from all requests, on connections of its own, in bounded time."""

import contextlib
import errno
import os
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from factor_search.errors import one_line
from storage.coordinators import CoordinatorStore
from storage.database import VERSION_TABLE, Database
from storage.errors import DatabaseError, MissingDatabaseError
from storage.schema import metadata

BUSY_SECONDS = 0.25
LOCKED_SECONDS = 10.0
"""The write lock may be held for so long before nothing more is accepted; usual transactions take milliseconds."""
NEEDED_BYTES = 2**20
"""Must fit on the disk beside an SQLite database."""
CHECK_SECONDS = 1.0
"""A check of all pages of an SQLite database takes at most so long; of a larger database it sees the first part."""
CHECK_SHARE = 0.02
"""Share of the time that goes into such checks."""
LEAST_PAUSE_SECONDS = 5.0
DAMAGE_SECONDS = 30.0
"""So long counts what a statement said of damage or a full disk."""


UNEXPECTED = "the database does not answer as expected"


@dataclass(frozen=True)
class Condition:
    """What was found. Nothing in it names files, machines or users: anybody may read it."""

    fault: str | None
    """Why the database cannot serve, in words; None if it can."""
    detail: str
    """The same for the log of the operator."""
    coordinators: int
    """That reported lately."""


class Probe:
    """Looks at one database again and again."""

    def __init__(self, requests: Database, silent_seconds: float) -> None:
        """Prepare.

        Args:
            requests: the database as requests use it, whose file and findings count.
            silent_seconds: a coordinator that has not reported for so long does not count as alive.
        """
        self._requests = requests
        self._silent_seconds = silent_seconds
        self._own = Database(requests.url, migrate=False, busy_seconds=BUSY_SECONDS, pool_size=1)
        self._locked_since: float | None = None
        self._journal: tuple[int, int] | None = None
        self._check_at = 0.0

    def close(self) -> None:
        """Give the connections back."""
        self._own.close()

    def look(self) -> Condition:
        """The condition now; takes a few milliseconds, at most about as long as the limits above together."""
        found = self._looked()
        if found.fault is not None:
            try:  # what is gone since the look began shows itself in many ways
                self._requests.check_file()
                if self._journal is not None and self._own.file is not None:
                    self._check_journal(self._own.file)
            except MissingDatabaseError as error:
                return Condition(self._reason(error), one_line(error), found.coordinators)
            except _FaultError as fault:
                return Condition(fault.reason, f"{found.detail}; {fault}", found.coordinators)
        if found.fault == UNEXPECTED and self._own.file is not None:  # damage shows itself in many ways
            self._check_at = 0.0
            try:
                self._check_pages(self._own.file)
            except _FaultError as fault:
                return Condition(fault.reason, f"{found.detail}; {fault}", found.coordinators)
            except DatabaseError as error:
                return Condition(self._reason(error) or UNEXPECTED, one_line(error), found.coordinators)
        return found

    def _looked(self) -> Condition:
        coordinators = 0
        try:
            self._requests.check_file()
            known = CoordinatorStore(self._own).list()
            coordinators = sum(one.silent_seconds < self._silent_seconds for one in known)
            self._check_tables()
            self._check_writing()
            if self._own.file is not None:
                self._check_journal(self._own.file)
                _check_room(self._own.file.absolute().parent)
                self._check_pages(self._own.file)
            self._check_damage()
        except _FaultError as fault:
            return Condition(fault.reason, one_line(fault), coordinators)
        except (DatabaseError, OSError) as error:
            reason = self._reason(error)
            return Condition(reason, one_line(error), coordinators)
        except Exception as error:  # a table that is missing, a permission: whatever it is, it does not serve
            return Condition(UNEXPECTED, one_line(error), coordinators)
        self._locked_since = None
        return Condition(None, "", coordinators)

    def _reason(self, error: Exception) -> str | None:
        """Why the database cannot serve, by what it said; None while a lock has not been held for long."""
        if isinstance(error, MissingDatabaseError):
            return "the database file was deleted or replaced: put it back and start the service again"
        code = _code(error)
        if code != sqlite3.SQLITE_BUSY:
            self._locked_since = None
            return REASONS.get(code, "the database cannot be reached")
        now = time.monotonic()
        self._locked_since = self._locked_since or now
        locked = now - self._locked_since
        return None if locked < LOCKED_SECONDS else f"the database has been locked for {locked:.0f} seconds"

    def _check_tables(self) -> None:
        with self._own.reading() as connection:
            for table in metadata.sorted_tables:
                connection.execute(text(f"SELECT 1 FROM {table.name} LIMIT 1")).all()

    def _check_writing(self) -> None:
        """A write that is taken back (SQLite), or what the server says of writing (PostgreSQL, which it would cost)."""
        if not self._own.is_sqlite:
            with self._own.reading() as connection:
                standby = connection.scalar(text("SELECT pg_is_in_recovery()"))
                read_only = connection.scalar(text("SHOW transaction_read_only"))
            if standby or read_only == "on":
                raise _FaultError("the database is read-only", "a standby" if standby else "transactions are read-only")
            return
        with contextlib.suppress(_TakeBackError), self._own.writing() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = version_num"))
            raise _TakeBackError

    def _check_journal(self, file: Path) -> None:
        """The write-ahead log stays as long as our connection is open; without it, newer records are lost."""
        try:
            found = os.stat(f"{file}-wal")
        except FileNotFoundError:
            inode = None
        else:
            inode = (found.st_dev, found.st_ino)
        if self._journal is None:
            self._journal = inode
        elif inode != self._journal:
            reason = "the write-ahead log of the database was deleted or replaced: start the service again"
            raise _FaultError(reason, f"{file}-wal was deleted or replaced")

    def _check_pages(self, file: Path) -> None:
        """SQLite's own check, on a new connection, which has nothing in memory."""
        damage = self._requests.damage
        if time.monotonic() < self._check_at and (damage is None or time.monotonic() - damage[0] > DAMAGE_SECONDS):
            return
        started = time.monotonic()
        address = f"{file.absolute().as_uri()}?mode=rw"
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as connection:
                connection.set_progress_handler(lambda: time.monotonic() - started > CHECK_SECONDS, 1000)
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                found = "ok"
            else:
                raise DatabaseError(one_line(error)) from error
        if found != "ok":
            raise _FaultError(REASONS[sqlite3.SQLITE_CORRUPT], found)
        now = time.monotonic()
        self._check_at = now + max(LEAST_PAUSE_SECONDS, (now - started) / CHECK_SHARE)

    def _check_damage(self) -> None:
        """What statements of requests met lately."""
        if self._requests.damage is not None and time.monotonic() - self._requests.damage[0] < DAMAGE_SECONDS:
            error = self._requests.damage[1]
            raise _FaultError(REASONS.get(_code(error), "the database is malformed"), one_line(error))


class _FaultError(Exception):
    """What prevents serving, for anybody; the message is for the log."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _TakeBackError(Exception):
    """Rolls a transaction back."""


REASONS: dict[int | str | None, str] = {
    sqlite3.SQLITE_CORRUPT: "the database is malformed",
    sqlite3.SQLITE_NOTADB: "the database is malformed",
    "XX001": "the database is malformed",
    "XX002": "the database is malformed",
    sqlite3.SQLITE_FULL: "the disk of the database is full",
    "53100": "the disk of the database is full",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    "25006": "the database is read-only",
    sqlite3.SQLITE_ERROR: UNEXPECTED,
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_IOERR: "the database cannot be read or written",
}


def _code(error: BaseException) -> int | str | None:
    """SQLite's primary result code, or PostgreSQL's SQLSTATE, of what an error came from."""
    link: BaseException | None = error
    while link is not None:
        orig = getattr(link, "orig", None) or link
        code, state = getattr(orig, "sqlite_errorcode", None), getattr(orig, "sqlstate", None)
        if code is not None:
            return int(code) & 0xFF
        if state is not None:
            return str(state)
        link = link.__cause__
    return None


def _check_room(folder: Path) -> None:
    """Write a file without a name beside the database: what is rolled back need never have come to the disk."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".factor-search-") as file:
            file.write(bytes(NEEDED_BYTES))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk of the database is full" if full else "the folder of the database is read-only"
        raise _FaultError(reason, f"{folder}: {error.strerror or error}") from None
