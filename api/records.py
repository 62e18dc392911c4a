"""The records of one database, for the routes: found by the ids that users give, and shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from api.cursors import JOB_ID, PLAN_ID
from api.plan_schemas import Plan
from api.schemas import Job
from api.settings import Settings
from api.shown import shown_job, shown_plan
from storage.coordinators import Coordinator, CoordinatorStore
from storage.course import CourseStore
from storage.database import Database
from storage.errors import NotFoundError
from storage.evaluations import EvaluationStore
from storage.events import PLAN
from storage.jobs import Job as StoredJob
from storage.jobs import JobStore
from storage.keys import KeyStore
from storage.plans import Plan as StoredPlan
from storage.plans import PlanStore
from storage.retention import RetentionStore
from storage.states import JobState

Stored = StoredJob | StoredPlan


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of one database, for the routes."""

    database: Database
    settings: Settings
    jobs: JobStore
    plans: PlanStore
    evaluations: EvaluationStore
    courses: CourseStore
    coordinators: CoordinatorStore
    retention: RetentionStore

    @classmethod
    def of(cls, database: Database, settings: Settings) -> "Records":
        """All stores of a database."""
        return cls(
            database=database,
            settings=settings,
            jobs=JobStore(database),
            plans=PlanStore(database),
            evaluations=EvaluationStore(database),
            courses=CourseStore(database),
            coordinators=CoordinatorStore(database),
            retention=RetentionStore(database),
        )

    def store(self, word: str) -> JobStore | PlanStore:
        """The store of jobs or of plans."""
        return self.plans if word == PLAN.word else self.jobs

    def find(self, word: str, id: str) -> Stored:
        """A job or plan by an id that a user gave.

        Raises:
            NotFoundError: there is none, or no id looks like that.
        """
        return self.find_plan(id) if word == PLAN.word else self.find_job(id)

    def find_job(self, id: str) -> StoredJob:
        """A job, as :meth:`find` does."""
        return self.jobs.get(_checked(id, JOB_ID, "job"))

    def find_plan(self, id: str) -> StoredPlan:
        """A plan, as :meth:`find` does."""
        return self.plans.get(_checked(id, PLAN_ID, "plan"))

    def live_coordinators(self) -> list[Coordinator]:
        """Those that have reported lately."""
        silent = self.settings.coordinator_silent_seconds
        return [known for known in self.coordinators.list() if known.silent_seconds < silent]

    def show(self, *stored: Stored) -> list[Job | Plan]:
        """Jobs or plans as users see them."""
        active = any(one.state in (JobState.QUEUED, JobState.RUNNING) for one in stored)
        known: dict[str, Any] = {"driven": active and bool(self.live_coordinators()), "owners": self._owners(stored)}
        return [shown_plan(one, **known) if isinstance(one, StoredPlan) else shown_job(one, **known) for one in stored]

    def _owners(self, stored: Sequence[Stored]) -> dict[str, str]:
        """Names of the keys by which these were submitted, by their ids."""
        if not any(one.submitted_by for one in stored):
            return {}
        return {key.id: key.name for key in KeyStore(self.database).list()}


def _checked(id: str, ids: re.Pattern[str], word: str) -> str:
    if not ids.fullmatch(id):
        raise NotFoundError(f"there is no {word} {id[:100]!r}: GET /v1/{word}s lists them")
    return id


async def records(request: Request) -> Records:
    """The records that a request is about; a dependency of the routes, which takes no thread."""
    found: Records = request.app.state.records
    return found
