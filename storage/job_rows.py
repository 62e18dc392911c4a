"""Rows of jobs within a transaction: made, read, locked by a lease, asked to pause or to end."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, select, update

from factor_search.plan.kinds import KINDS
from factor_search.plan.kinds.contract import Execution
from factor_search.spec import JobSpec, parse_spec
from storage.errors import ConflictError, LeaseLostError, NotFoundError
from storage.events import append_events
from storage.schema import candidates, jobs, now
from storage.states import ENDED, CandidateState, JobState, StateRequest

SEARCH = "search"
LONGEST_LEASE_SECONDS = 600.0
"""Of a lease of version 0.1.0, which did not record for how long it was granted."""
SLACK_SECONDS = 1.0
"""A clock that is disciplined may go back by so much."""
SEARCHES = tuple(kind.name for kind in KINDS.values() if kind.execution == Execution.SEARCH)
"""Kinds of jobs that search: they have a specification, factors, a report and a study."""


@dataclass(frozen=True)
class Lease:
    """The right to drive one job; every write of a driver names it."""

    job_id: str
    owner: str
    attempt: int


@dataclass(frozen=True)
class Spent:
    """What some work has cost."""

    tokens: int = 0
    """Scored by evaluations, or read by a training."""
    device_seconds: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.tokens + other.tokens, self.device_seconds + other.device_seconds)

    def added(self) -> dict[str, Any]:
        """The columns of a job to which it is added."""
        if self == Spent():
            return {}
        return {
            "tokens": jobs.c.tokens + self.tokens,
            "device_seconds": jobs.c.device_seconds + self.device_seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as stored. Times are seconds since 1970."""

    id: str
    name: str
    kind: str
    """One of :data:`factor_search.plan.kinds.KINDS`."""
    plan_id: str | None
    """Of the plan that it is a stage of."""
    plan_stage: str | None
    """Name of that stage."""
    spec: dict[str, Any]
    """The specification of a search, or the work of another kind."""
    spec_sha256: str
    """Identity of its result."""
    state: str
    request: str | None
    """``pause`` or ``cancel``, while a coordinator has not yet done so."""
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    owner: str | None
    attempt: int
    claims_in_vain: int
    """Claims since something was last recorded or its coordinator let go of it: a job that kills its coordinator again
    and again must end."""
    lease_until: float | None
    events: int
    progress: dict[str, Any]
    error: str | None
    tokens: int
    """Tokens that devices have scored or read for it; evaluations that others had computed cost nothing."""
    device_seconds: float
    """Seconds that devices have computed for it."""
    submitted_by: str | None
    """Id of the API key."""
    kept: str | None
    """Name under which it is kept when others are aged out."""

    def parse_spec(self) -> JobSpec:
        """The specification of a search as a value; it was valid when submitted."""
        return parse_spec(self.spec, stored=True)


JOB_COLUMNS = [jobs.c[name] for name in Job.__dataclass_fields__]


def work_folder_name(kind: str, spec_sha256: str) -> str:
    """The folder of a job's files in the work folder; jobs with identical work share it."""
    return f"{kind}-{spec_sha256[:24]}"


def insert_job(
    connection: Connection, *, name: str, kind: str, spec: Mapping[str, Any], spec_sha256: str, **others: Any
) -> str:
    """Queue a job; returns its id.

    Args:
        connection: in a transaction.
        name: for people.
        kind: of the work.
        spec: the work.
        spec_sha256: identity of its result.
        others: further columns.
    """
    job_id = new_id()
    values = {
        "id": job_id,
        "name": name,
        "kind": kind,
        "spec": spec,
        "spec_sha256": spec_sha256,
        "state": JobState.QUEUED,
        "submitted_at": now(),
        "attempt": 0,
        "claims_in_vain": 0,
        "events": 0,
        "progress": {},
    }
    connection.execute(insert(jobs).values(values | others))
    append_events(connection, job_id, [("submitted", {"name": name})])
    return job_id


def read_job(connection: Connection, job_id: str, *, lock: bool = False) -> Job:
    """One job.

    Raises:
        NotFoundError: there is none.
    """
    query = select(*JOB_COLUMNS).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}")
    return job_of(row)


def job_of(row: Row[*tuple[Any, ...]]) -> Job:
    """A row as a value."""
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})


def request_state(connection: Connection, job_id: str, request: str, state: str) -> Job:
    """Bring a job into a state: at once if no coordinator drives it, else at its coordinator's next look.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: it has ended, or is to be cancelled.
    """
    job = read_job(connection, job_id, lock=True)
    driven = job.state == JobState.RUNNING and connection.scalar(select(is_leased()).where(jobs.c.id == job_id))
    if job.state == state or (job.request == request and driven):
        return job
    if job.state in ENDED or (job.request == StateRequest.CANCEL and request != StateRequest.CANCEL):
        raise ConflictError(f"job {job_id} is {job.request or job.state}: it cannot be {state}")
    if driven:
        values: dict[str, Any] = {"request": request}
        kind = f"{request}_requested"
    else:
        values, kind = {"state": state, "request": None}, state
        # a coordinator with an old lease must not write any more
        values |= {"attempt": jobs.c.attempt + 1, "lease_until": None}
        values |= ending(state)
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
    if not driven:
        withdraw_unfinished(connection, job_id, state)
    append_events(connection, job_id, [(kind, {})])
    return read_job(connection, job_id)


def resume_job(connection: Connection, job_id: str) -> Job:
    """Queue a paused job again, or take back a pause that was not carried out yet.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: it has ended, or is to be cancelled.
    """
    job = read_job(connection, job_id, lock=True)
    if job.state in ENDED or job.request == StateRequest.CANCEL:
        raise ConflictError(f"job {job_id} is {job.state}: it cannot be resumed")
    if job.state == JobState.PAUSED:
        values: dict[str, Any] = {"state": JobState.QUEUED, "owner": None, "lease_until": None, "request": None}
    elif job.request == StateRequest.PAUSE:
        values = {"request": None}
    else:
        return job
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
    append_events(connection, job_id, [("resumed", {})])
    return read_job(connection, job_id)


def fenced_update(connection: Connection, lease: Lease, values: Mapping[str, Any]) -> None:
    """Update a job that is still ours; also locks its row until the end of the transaction.

    Raises:
        LeaseLostError: it is not ours any more.
    """
    if connection.execute(update(jobs).where(is_held(lease)).values(values)).rowcount != 1:
        raise LeaseLostError(f"job {lease.job_id} is not driven by {lease.owner} any more")


def is_held(lease: Lease) -> ColumnElement[bool]:
    """Whether a job is still driven by the holder of a lease."""
    ours = (jobs.c.id == lease.job_id, jobs.c.owner == lease.owner, jobs.c.attempt == lease.attempt)
    return and_(*ours, jobs.c.state == JobState.RUNNING)


def is_leased() -> ColumnElement[bool]:
    """Whether a job's lease has not run out.

    One that is longer than it was granted for is of before the clock was set back: if its holder lives, it is renewed
    within a second, and else it would hold for as long as the clock was set back.
    """
    granted = func.coalesce(jobs.c.lease_seconds, LONGEST_LEASE_SECONDS)
    return and_(jobs.c.lease_until > now(), jobs.c.lease_until <= now() + granted + SLACK_SECONDS)


def ending(state: str) -> dict[str, Any]:
    """What else is to be written with a state."""
    return {"ended_at": now()} if state in ENDED else {}


def withdraw_unfinished(connection: Connection, job_id: str, state: str) -> None:
    """No candidate of a job that has ended is running."""
    if state in ENDED:
        unfinished = and_(candidates.c.job_id == job_id, candidates.c.state == CandidateState.RUNNING)
        connection.execute(update(candidates).where(unfinished).values(state=CandidateState.WITHDRAWN))


def new_id() -> str:
    """Sorts by time of submission, cannot be guessed."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(6)}"
