"""Clocks that can be stepped while a process runs: Python's, SQLite's and PostgreSQL's.

    FACTOR_SEARCH_BENCH_CLOCK=FILE python -m bench.faults.stepped_clock -m workers ...

runs a module whose ``time.time`` and whose SQLite connections add the number of seconds in the file. PostgreSQL has a
clock of its own, which all of its clients share: :func:`give_clock` lets it be stepped by an update of a row. The
product knows nothing of this.
"""

import contextlib
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

FILE = "FACTOR_SEARCH_BENCH_CLOCK"
UNIX_EPOCH, SECONDS_A_DAY = 2440587.5, 86400.0  # as a Julian day

_time = time.time


def seconds_of(file: Path) -> float:
    """By how much clocks are wrong; 0 without a file."""
    with contextlib.suppress(OSError, ValueError):
        return float(file.read_text())
    return 0.0


def step_sqlite(engine: type[Engine] | Engine, seconds: Callable[[], float]) -> None:
    """Replace SQLite's clock on every connection that is made from now on."""

    @event.listens_for(engine, "connect")
    def replace(connection: Any, record: object) -> None:
        if hasattr(connection, "create_function"):
            connection.create_function(
                "julianday", 1, lambda when: UNIX_EPOCH + (_time() + seconds()) / SECONDS_A_DAY, deterministic=False
            )


def give_clock(url: str) -> None:
    """Replace the clock of a PostgreSQL database by one that :func:`step_postgresql` steps."""
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute("CREATE SCHEMA stepped")
        connection.execute("CREATE TABLE stepped.clock AS SELECT 0.0::float AS seconds")
        connection.execute(
            "CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            "'SELECT pg_catalog.clock_timestamp() + (SELECT seconds FROM stepped.clock) * interval ''1 second'''"
        )
        connection.execute(f'ALTER DATABASE "{name}" SET search_path = stepped, pg_catalog, public')


def step_postgresql(url: str, seconds: float) -> None:
    """Set by how much the clock of a database is wrong."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE stepped.clock SET seconds = %s", (seconds,))


def install(file: Path) -> None:
    """Step the clocks of this process by the number of seconds in a file, from now on."""
    time.time = lambda: _time() + seconds_of(file)
    step_sqlite(Engine, lambda: seconds_of(file))


if __name__ == "__main__":
    if FILE in os.environ:
        install(Path(os.environ[FILE]))
    sys.argv = sys.argv[sys.argv.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
