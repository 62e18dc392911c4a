"""The course of a job's search for those who draw it: a few figures of each candidate, without its factors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, case, cast, func, select

from factor_search.factors import Factors
from storage.database import Database
from storage.evaluations import CANDIDATES, factors_of
from storage.schema import candidates, evaluations, searches

PART = "search"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a job's search is about, as recorded when it began."""

    target_length: int
    study: str
    """Name of its study in Optuna's tables."""
    prepared: dict[str, Any]
    """Geometry, closed forms, documents and space; see :mod:`workers.search_run`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One candidate of a search."""

    number: int
    """In the order proposed, from 0."""
    generation: int
    state: str
    """running, done or withdrawn."""
    candidate: str
    """The same for the same factors: a candidate that is continued on more documents is a further step."""
    factors: Factors | None
    """Only of the first generation, which has the closed forms."""
    outcome: str | None
    losses: Sequence[float]
    """Of each document, nats per token."""
    tokens: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class WorkerShare:
    """What one worker has done for a job."""

    name: str
    evaluations: int
    seconds: float
    last_at: float
    """Seconds since 1970."""


class CourseStore:
    """What is recorded of the courses of searches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def search(self, job_id: str) -> Search | None:
        """What a job's search is about; None before it has begun."""
        query = select(searches.c.target_length, searches.c.study, searches.c.prepared)
        with self._database.reading() as connection:
            row = connection.execute(query.where(searches.c.job_id == job_id)).one_or_none()
        return None if row is None else Search(target_length=row[0], study=row[1], prepared=row[2])

    def steps(self, job_id: str, after: int, limit: int) -> list[Step]:
        """Candidates of the search documents in the order proposed, after a number."""
        first = case((candidates.c.generation == 0, candidates.c.factors))
        columns = [
            *(candidates.c.number, candidates.c.generation, candidates.c.state, candidates.c.losses_so_far),
            *(cast(candidates.c.factors, Text).label("text"), first.label("first")),
            *(evaluations.c.outcome, evaluations.c.losses, evaluations.c.tokens),
        ]
        page = (candidates.c.job_id == job_id, candidates.c.part == PART, candidates.c.number > after)
        query = select(*columns).select_from(CANDIDATES).where(*page).order_by(candidates.c.number).limit(limit)
        with self._database.reading() as connection:
            return [
                Step(
                    number=row.number,
                    generation=row.generation,
                    state=row.state,
                    candidate=hashlib.sha256(row.text.encode()).hexdigest()[:12],
                    factors=None if row.first is None else factors_of(row.first),
                    outcome=row.outcome,
                    losses=(row.losses_so_far or ()) if row.outcome is None else row.losses,
                    tokens=row.tokens or (),
                )
                for row in connection.execute(query)
            ]

    def outcomes(self, job_id: str) -> dict[str, int]:
        """How many candidates of the search documents have each outcome, or are running or withdrawn."""
        known = func.coalesce(evaluations.c.outcome, candidates.c.state)
        query = select(known, func.count()).select_from(CANDIDATES).group_by(known)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(candidates.c.job_id == job_id, candidates.c.part == PART))
            return {row[0]: row[1] for row in rows}

    def workers(self, job_id: str) -> list[WorkerShare]:
        """Who computed evaluations for a job, the last one first; without those known before."""
        last = func.max(evaluations.c.recorded_at)
        columns = (evaluations.c.worker, func.count(), func.sum(evaluations.c.seconds), last)
        query = select(*columns).where(evaluations.c.job_id == job_id, evaluations.c.worker != "")
        with self._database.reading() as connection:
            rows = connection.execute(query.group_by(evaluations.c.worker).order_by(last.desc(), evaluations.c.worker))
            return [WorkerShare(name=name, evaluations=n, seconds=s, last_at=at) for name, n, s, at in rows]
