"""Jobs: submitted once, claimed by one coordinator at a time, paused, resumed, cancelled, ended."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, exists, func, not_, or_, select, update

from factor_search.spec import JobSpec
from storage.asked import Asked
from storage.clock import Clock
from storage.database import Database
from storage.errors import ConflictError, NotFoundError
from storage.events import JOB, append_events
from storage.job_rows import (
    JOB_COLUMNS,
    SEARCH,
    SEARCHES,
    Job,
    Lease,
    Spent,
    ending,
    fenced_update,
    insert_job,
    is_held,
    is_leased,
    job_of,
    read_job,
    request_state,
    resume_job,
    withdraw_unfinished,
)
from storage.owners import OwnerStore
from storage.schema import jobs, now, plans
from storage.states import JobState, StateRequest

__all__ = ["SEARCHES", "Job", "JobStore", "Lease", "Spent", "fenced_update"]

_AFTER = {StateRequest.PAUSE: JobState.PAUSED, StateRequest.CANCEL: JobState.CANCELLED}
LONGEST_WAIT_SECONDS = 120.0
"""That a job given back may be left alone for; a longer wait is of before the clock was set back."""
_LARGE = {"factors": jobs.c.factors, "report": jobs.c.report}


class JobStore(OwnerStore[Job]):
    """All changes of jobs, by users and by coordinators."""

    _history, _source, _columns, _state = JOB, jobs, JOB_COLUMNS, jobs.c.state

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.clock = Clock()

    def _read(self, connection: Connection, id: str) -> Job:
        return read_job(connection, id)

    def _listed(self, connection: Connection, rows: Sequence[Row[Any]]) -> Sequence[Job]:
        return [job_of(row) for row in rows]

    def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        submitted_by: str | None = None,
        asked: Asked | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job.

        Args:
            spec: what to search.
            idempotency_key: the same key never makes a second job.
            submitted_by: id of an API key.
            asked: what was asked for, which the same key has to repeat; None is ``spec``.

        Returns:
            The job and whether it is new; an idempotency key that was used before gives the job of that time.

        Raises:
            ConflictError: the idempotency key was used for another specification.
        """
        document, asked = spec.model_dump(mode="json"), asked or Asked.of(spec)
        values: dict[str, Any] = {"name": spec.name, "kind": SEARCH, "spec": document, "spec_sha256": spec.sha256}
        values |= {"idempotency_key": idempotency_key, "request_sha256": asked.sha256, "submitted_by": submitted_by}
        return self._submit_once(lambda connection: insert_job(connection, **values), idempotency_key, asked)

    def document(self, job_id: str, name: str) -> dict[str, Any] | None:
        """``factors`` or ``report`` of a job, None before there are any.

        Raises:
            NotFoundError: there is no such job.
        """
        with self._database.reading() as connection:
            row = connection.execute(select(_LARGE[name]).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no job {job_id}")
        found: dict[str, Any] | None = row[0]
        return found

    def plan_spec_of(self, job_id: str) -> dict[str, Any] | None:
        """The specification of the plan that a job is a stage of; None if it is of none."""
        query = select(plans.c.spec).join(jobs, jobs.c.plan_id == plans.c.id).where(jobs.c.id == job_id)
        with self._database.reading() as connection:
            found: dict[str, Any] | None = connection.execute(query).scalar()
        return found

    def pace_of(self, model: str) -> tuple[int, float] | None:
        """Target length and seconds a token of the last finished search of a model; None if there is none.

        Args:
            model: its id, as specifications name it.
        """
        search = [jobs.c.report[("search", name)].as_float() for name in ("tokens", "seconds")]
        query = select(jobs.c.spec["target_length"].as_integer(), *search)
        of_model = (jobs.c.kind == SEARCH, jobs.c.state == JobState.FINISHED)
        query = query.where(*of_model, jobs.c.spec[("model", "id")].as_string() == model)
        with self._database.reading() as connection:
            row = connection.execute(query.order_by(jobs.c.submitted_at.desc()).limit(1)).one_or_none()
        if row is None or not row[1] or not row[2]:
            return None
        return int(row[0]), row[2] / row[1]

    def spent_by_kind(self) -> dict[str, Spent]:
        """What all jobs of each kind have cost."""
        sums = (func.sum(jobs.c.tokens), func.sum(jobs.c.device_seconds))
        with self._database.reading() as connection:
            rows = connection.execute(select(jobs.c.kind, *sums).group_by(jobs.c.kind))
            return {kind: Spent(int(tokens), float(seconds)) for kind, tokens, seconds in rows}

    def pause(self, job_id: str) -> Job:
        """Stop a job so that it can be resumed: at once, or at its coordinator's next look if one drives it.

        Raises:
            NotFoundError: there is no such job.
            ConflictError: it has ended, or is to be cancelled.
        """
        return self._request(job_id, StateRequest.PAUSE, JobState.PAUSED)

    def cancel(self, job_id: str) -> Job:
        """End a job for good.

        Raises:
            NotFoundError: there is no such job.
            ConflictError: it has ended otherwise.
        """
        return self._request(job_id, StateRequest.CANCEL, JobState.CANCELLED)

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again, or take back a pause that was not carried out yet.

        Raises:
            NotFoundError: there is no such job.
            ConflictError: it has ended, or is to be cancelled.
        """
        with self._database.writing() as connection:
            _check_steered_alone(connection, job_id)
            return resume_job(connection, job_id)

    def _request(self, job_id: str, request: str, state: str) -> Job:
        with self._database.writing() as connection:
            _check_steered_alone(connection, job_id)
            return request_state(connection, job_id, request, state)

    def claim(self, owner: str, lease_seconds: float) -> tuple[Job, Lease] | None:
        """Take the oldest job that is queued, or whose coordinator has let its lease run out.

        One statement, so two coordinators never get the same job; a row that another one is just claiming is skipped.
        If the database's clock was just set, leases are left alone until those who hold them have renewed them.

        A job whose coordinator has died before it recorded anything may be what felled it. A coordinator takes one such
        job at a time, so that others which were only beginning then are not blamed with it.
        """
        other = jobs.alias("other")
        is_suspect = (other.c.owner == owner, other.c.state == JobState.RUNNING, other.c.claims_in_vain > 1)
        drives_suspect = exists().where(*is_suspect, other.c.lease_until > now(), other.c.id != jobs.c.id)
        waits = and_(jobs.c.waits_until > now(), jobs.c.waits_until <= now() + LONGEST_WAIT_SECONDS)
        queued = and_(jobs.c.state == JobState.QUEUED, or_(jobs.c.waits_until.is_(None), not_(waits)))
        left = and_(jobs.c.state == JobState.RUNNING, not_(is_leased()))
        blameless = or_(jobs.c.claims_in_vain == 0, ~drives_suspect)
        values = {
            "state": JobState.RUNNING,
            "owner": owner,
            "attempt": jobs.c.attempt + 1,
            "claims_in_vain": jobs.c.claims_in_vain + 1,
            "lease_until": now() + lease_seconds,
            "lease_seconds": lease_seconds,
            "started_at": func.coalesce(jobs.c.started_at, now()),
            "waits_until": None,
        }
        with self._database.writing() as connection:
            self.clock.saw(connection.execute(select(now())).scalar_one())
            claimable = queued if self.clock.stepped_within(lease_seconds) else or_(queued, left)
            claimable = and_(claimable, blameless)
            oldest = select(jobs.c.id).where(claimable).order_by(jobs.c.submitted_at, jobs.c.id).limit(1)
            claimed = update(jobs).where(jobs.c.id == oldest.with_for_update(skip_locked=True).scalar_subquery())
            row = connection.execute(claimed.values(values).returning(*JOB_COLUMNS)).one_or_none()
            if row is None:
                return None
            append_events(connection, row.id, [("claimed", {"coordinator": owner, "attempt": row.attempt})])
        return job_of(row), Lease(row.id, owner, row.attempt)

    def renew(self, leases: Collection[Lease], lease_seconds: float) -> dict[Lease, str | None]:
        """Prolong leases, even late, as long as nobody else took the job.

        Only those of jobs that are really driven: a lease that its driver is not there for must run out.

        Returns:
            The leases that hold, each with what its driver is asked to do with the job (None, pause, cancel).
        """
        if not leases:
            return {}
        ours = or_(*(is_held(lease) for lease in leases))
        in_order = select(jobs.c.id).where(ours).order_by(jobs.c.id).with_for_update()  # as everybody locks them
        values = update(jobs).where(jobs.c.id.in_(in_order))
        values = values.values(lease_until=now() + lease_seconds, lease_seconds=lease_seconds)
        with self._database.writing() as connection:
            rows = connection.execute(values.returning(jobs.c.id, jobs.c.owner, jobs.c.attempt, jobs.c.request)).all()
        return {Lease(row.id, row.owner, row.attempt): row.request for row in rows}

    def give_back(self, lease: Lease, *, wait_seconds: float = 0.0, reason: str | None = None) -> None:
        """Put a claimed job back into the queue, to be claimed again after a while; or do what was asked of it.

        Raises:
            LeaseLostError: it is not ours any more.
        """
        with self._database.writing() as connection:
            fenced_update(connection, lease, {"claims_in_vain": 0, "lease_until": None})
            state = _asked_for(connection, lease.job_id)
            until = now() + min(wait_seconds, LONGEST_WAIT_SECONDS)
            waits = {"owner": None, "waits_until": until} if state == JobState.QUEUED else {}
            fenced_update(connection, lease, {"state": state, "request": None} | waits | ending(state))
            withdraw_unfinished(connection, lease.job_id, state)
            said = [("waiting", {"reason": reason})] if reason else []
            append_events(connection, lease.job_id, said if state == JobState.QUEUED else [(state, {})])

    def end(
        self,
        lease: Lease,
        state: str,
        *,
        error: str | None = None,
        factors: Mapping[str, Any] | None = None,
        report: Mapping[str, Any] | None = None,
        outcome: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        spent: Spent | None = None,
    ) -> None:
        """Say how driving a job ended: finished, failed, cancelled or paused.

        What was asked of a job while it came to a pause counts: resumed, it is queued again; cancelled, it is.

        Raises:
            LeaseLostError: it is not ours any more.
        """
        with self._database.writing() as connection:
            fenced_update(connection, lease, {"attempt": lease.attempt})
            if state == JobState.PAUSED:
                state = _asked_for(connection, lease.job_id)
            values: dict[str, Any] = {"state": state, "request": None, "lease_until": None, "error": error}
            values["claims_in_vain"] = 0  # its coordinator lives
            values |= (spent or Spent()).added()
            if state == JobState.FINISHED:
                values |= {"factors": factors, "report": report, "outcome": outcome}
            fenced_update(connection, lease, values | ending(state))
            withdraw_unfinished(connection, lease.job_id, state)
            entry = dict(data or {}) | ({"error": error} if error else {})
            append_events(connection, lease.job_id, [(state, entry)])


def _check_steered_alone(connection: Connection, job_id: str) -> None:
    """Refuse to steer a job past the plan that it belongs to."""
    job = read_job(connection, job_id)
    if job.plan_id is not None:
        raise ConflictError(
            f"job {job_id} is the stage {job.plan_stage} of the plan {job.plan_id}: pause, resume or cancel the plan"
        )


def _asked_for(connection: Connection, job_id: str) -> JobState:
    """The state that a job shall be in when its driver lets go of it."""
    request = read_job(connection, job_id).request
    return JobState.QUEUED if request is None else _AFTER[StateRequest(request)]
