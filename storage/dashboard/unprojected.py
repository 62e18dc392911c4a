"""Which candidates Optuna's tables do not show as they are now."""

import time
from collections.abc import Iterable

from sqlalchemy import ColumnElement, String, and_, bindparam, case, func, literal, select, update

from storage.dashboard.trials import WAITING
from storage.database import Database
from storage.errors import DatabaseError
from storage.evaluations import CANDIDATE_COLUMNS, CANDIDATES, CandidateRow, candidate_row
from storage.schema import candidates, jobs
from storage.states import CandidateState, JobState

CATCH_UP_POLL_SECONDS = 0.1
PART = "search"
"""Only what was searched is shown; the other parts measure the winner."""


class Unprojected:
    """The candidates of one job that are to be projected, and the marks of those that were."""

    def __init__(self, database: Database, job_id: str) -> None:
        self._database = database
        self._job_id = job_id
        self._here = and_(candidates.c.job_id == job_id, candidates.c.part == PART)

    def read(self, job_state: str, first: int, limit: int) -> list[tuple[CandidateRow, str]]:
        """Candidates from a number on that are not shown as they are, in order, each with what it should show."""
        shown = _shown(job_state)
        changed = (candidates.c.number >= first, candidates.c.projected.is_distinct_from(shown))
        query = select(*[*CANDIDATE_COLUMNS, shown.label("shown")]).select_from(CANDIDATES).where(self._here, *changed)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(candidates.c.number).limit(limit))
            return [(candidate_row(row), row.shown) for row in rows]

    def running(self, first: int, limit: int) -> list[CandidateRow]:
        """Candidates from a number on that run and are shown to run: more of their documents may be known by now."""
        running = (candidates.c.state == CandidateState.RUNNING, candidates.c.projected == CandidateState.RUNNING)
        query = select(*CANDIDATE_COLUMNS).select_from(CANDIDATES).where(self._here, *running)
        with self._database.reading() as connection:
            after = query.where(candidates.c.number >= first)
            return [candidate_row(row) for row in connection.execute(after.order_by(candidates.c.number).limit(limit))]

    def count(self) -> int:
        """How many are not shown as they are."""
        with self._database.reading() as connection:
            state = connection.scalar(select(jobs.c.state).where(jobs.c.id == self._job_id))
            changed = candidates.c.projected.is_distinct_from(_shown(state or ""))
            return connection.scalar(select(func.count()).where(self._here, changed)) or 0

    def mark(self, marks: Iterable[tuple[int, str | None]]) -> None:
        """Say what Optuna's tables show of candidates: what was read of them, which may be outdated already."""
        rows = [{"candidate": number, "shown": shown} for number, shown in marks]
        if rows:
            marked = update(candidates).where(self._here, candidates.c.number == bindparam("candidate"))
            with self._database.writing() as connection:
                connection.execute(marked.values(projected=bindparam("shown")), rows)

    def forget_lost(self, known: Iterable[int]) -> None:
        """Take back the marks of candidates that Optuna's tables do not have: they were deleted, or lost in a crash."""
        marked = select(candidates.c.number).where(self._here, candidates.c.projected.is_not(None))
        with self._database.reading() as connection:
            lost = set(connection.scalars(marked)) - set(known)
        self.mark((number, None) for number in sorted(lost))


def _shown(job_state: str) -> ColumnElement[str]:
    """What a candidate should show: its state, unless it was left running by a job that is paused."""
    left_running = WAITING if job_state == JobState.PAUSED else CandidateState.RUNNING
    running = candidates.c.state == CandidateState.RUNNING
    return case((running, literal(left_running, String)), else_=candidates.c.state)


def catch_up(database: Database, job_id: str, seconds: float) -> int:
    """Wait until a projector has brought all candidates of a job up to date, but not longer than so many seconds.

    Returns:
        How many are still not shown as they are; -1 if the database could not say so.
    """
    end = time.monotonic() + seconds
    queue = Unprojected(database, job_id)
    while True:
        try:
            left = queue.count()
        except DatabaseError:
            left = -1
        if left == 0 or time.monotonic() >= end:
            return left
        time.sleep(CATCH_UP_POLL_SECONDS)
