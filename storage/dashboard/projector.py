"""The process that keeps Optuna's tables up to date for one coordinator, ``python -m storage.dashboard.projector``.

It is a process of its own, at low priority, so that nothing that Optuna does slows down recording. Whatever goes wrong
is one line on standard error, and is tried again: the dashboard may lag behind, a job never fails for it.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from sqlalchemy import Row, or_, select

from factor_search.errors import one_line
from factor_search.visible import visible
from storage.coordinators import SILENT
from storage.dashboard.projection import Projection
from storage.database import Database
from storage.errors import DatabaseError
from storage.jobs import SEARCHES
from storage.schema import coordinators, jobs, now, searches
from storage.states import ENDED, JobState

NICENESS = 10
IDLE_SECONDS = 0.5
PAGE_SECONDS = 3.0
"""A note and its figures are not written more often while a job runs."""
SILENT_SECONDS = 60.0
"""A coordinator that has not reported for so long is gone."""
REMEMBERED_SECONDS = 600
"""A job that ended earlier than this before the projector started is not looked at."""
SHORTEST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 30.0
DATABASE, DASHBOARD_DATABASE = "FACTOR_SEARCH_DATABASE", "FACTOR_SEARCH_DASHBOARD_DATABASE"
"""Environment variables, since other users of a machine can read the arguments of a process."""


def start(database_url: str, optuna_url: str, owner: str) -> "subprocess.Popen[bytes]":
    """Start a projector as a child; it ends by itself when its standard input is closed or this process dies."""
    return subprocess.Popen(command(owner), stdin=subprocess.PIPE, env=environment(database_url, optuna_url))


def command(owner: str) -> list[str]:
    """Program and arguments of a projector."""
    return [sys.executable, "-P", "-m", "storage.dashboard.projector", "--owner", owner]


def environment(database_url: str, optuna_url: str) -> dict[str, str]:
    """What a projector's environment must be."""
    return os.environ | {DATABASE: database_url, DASHBOARD_DATABASE: optuna_url}


@dataclass
class _Watched:
    """What was last done about one job."""

    page_at: float = -PAGE_SECONDS
    retry_at: float = 0.0
    retry_seconds: float = SHORTEST_RETRY_SECONDS


@dataclass
class Projector:
    """Projects, in turn, all jobs that a coordinator drives or has just driven, or that nobody drives."""

    database: Database
    projection: Projection
    owner: str
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _settled: dict[str, int] = field(default_factory=dict)
    """Jobs that do not run and are fully shown, with the number of their last event then."""
    _unsettled: set[str] = field(default_factory=set)

    def turn(self, *, last: bool = False) -> bool:
        """One batch for each job that lags behind; returns whether there is more to do at once.

        Args:
            last: there will be no other turn, so notes are written however fresh they are.

        Raises:
            DatabaseError: one of the databases cannot be reached now.
        """
        more, found = False, self._jobs()
        ids = {job.id for job in found}
        self._settled = {id: events for id, events in self._settled.items() if id in ids}
        for job in found:
            if self._settled.get(job.id) == job.events:
                continue
            self._unsettled.add(job.id)
            left = self._project(job.id, at_once=last or job.state != JobState.RUNNING)
            more |= left == "more"
            if job.state != JobState.RUNNING and left == "settled":
                self._settled[job.id] = job.events
                self._unsettled.discard(job.id)
                self._watched.pop(job.id, None)
                self.projection.forget(job.id)
        return more

    def _jobs(self) -> list[Row[str, str, int]]:
        recent = or_(
            jobs.c.state.not_in(ENDED), jobs.c.ended_at > now() - REMEMBERED_SECONDS, jobs.c.id.in_(self._unsettled)
        )
        alive = select(coordinators.c.id).where(SILENT < SILENT_SECONDS)
        # what a coordinator that is gone has left is anybody's; two that take it do not harm each other
        ours = or_(jobs.c.owner == self.owner, jobs.c.owner.is_(None), jobs.c.owner.not_in(alive))
        search = jobs.c.kind.in_(SEARCHES)
        query = select(jobs.c.id, jobs.c.state, jobs.c.events).join(searches).where(ours, search, recent)
        with self.database.reading() as connection:
            return list(connection.execute(query.order_by(jobs.c.submitted_at)))

    def _project(self, job_id: str, *, at_once: bool) -> str:
        """``more`` is left to do, it is to be tried again ``later``, or all is ``settled``."""
        watched = self._watched.setdefault(job_id, _Watched())
        if time.monotonic() < watched.retry_at:
            return "later"
        try:
            more = self.projection.project(job_id) > 0
            due = time.monotonic() - watched.page_at >= PAGE_SECONDS
            if due or (at_once and not more):
                self.projection.summarise(job_id)
                watched.page_at = time.monotonic()
        except DatabaseError:
            raise
        except Exception as error:  # a flaw in one study must not keep the others from the dashboard
            say(f"job {job_id}: {type(error).__name__}: {one_line(error)}")
            watched.retry_at = time.monotonic() + watched.retry_seconds
            watched.retry_seconds = min(2 * watched.retry_seconds, LONGEST_RETRY_SECONDS)
            return "later"
        watched.retry_seconds = SHORTEST_RETRY_SECONDS
        return "more" if more else "settled"


def run(database_url: str, optuna_url: str, owner: str, stop: threading.Event) -> None:
    """Project until told to stop, whatever happens to the databases meanwhile."""
    retry_seconds, said = SHORTEST_RETRY_SECONDS, ""
    while not stop.is_set():
        try:
            with Database(database_url) as database, Projection(database, optuna_url) as projection:
                projector = Projector(database, projection, owner)
                while not stop.is_set():
                    more = projector.turn()
                    retry_seconds, said = SHORTEST_RETRY_SECONDS, ""
                    if not more:
                        stop.wait(IDLE_SECONDS)
                with contextlib.suppress(DatabaseError):
                    projector.turn(last=True)
        except DatabaseError as error:
            if str(error) != said:
                said = str(error)
                say(f"{said}; trying again")
            stop.wait(retry_seconds)
            retry_seconds = min(2 * retry_seconds, LONGEST_RETRY_SECONDS)


def say(line: str) -> None:
    """One line for whoever reads the coordinator's standard error."""
    print(f"dashboard projection: {visible(line)}", file=sys.stderr, flush=True)


def _stop_at_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held at the end of the process
        pass
    stop.set()


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="python -m storage.dashboard.projector", description=__doc__)
    parser.add_argument("--database", default=os.environ.get(DATABASE), help=f"of the jobs (default: ${DATABASE})")
    of_optuna = f"of Optuna's tables (default: ${DASHBOARD_DATABASE})"
    parser.add_argument("--dashboard-database", default=os.environ.get(DASHBOARD_DATABASE), help=of_optuna)
    parser.add_argument("--owner", required=True, help="id of the coordinator whose jobs are projected")
    given = parser.parse_args(arguments)
    if not given.database or not given.dashboard_database:
        parser.error("both databases must be named")
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    run(given.database, given.dashboard_database, given.owner, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
