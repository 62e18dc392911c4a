"""Evaluations, the truth that everything else can be rebuilt from, and the candidates of jobs that point at them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from factor_search.factors import Factors
from factor_search.measure.evaluation import LASTING, Evaluation
from storage.database import Database
from storage.errors import LeaseLostError
from storage.events import append_events
from storage.jobs import Lease, Spent, fenced_update
from storage.retention import lock_retention
from storage.schema import candidates, evaluations, now, searches
from storage.states import CandidateState

KEYS_AT_ONCE = 500
SHARED = ""
"""Scope of evaluations that every job may use."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A candidate's place in a job."""

    part: str
    """search, validation or held_out."""
    number: int
    """In the order proposed within its part, from 0."""
    generation: int
    key: str
    factors: Factors


@dataclass(frozen=True, kw_only=True)
class Computed:
    """An evaluation and how it came about."""

    evaluation: Evaluation
    worker: str
    """Where it was computed."""
    attempts: int
    error: str | None = None
    """What a failed attempt said."""


@dataclass
class Batch:
    """What one job has to record at a time."""

    started: list[Candidate] = field(default_factory=list)
    losses_so_far: dict[Candidate, Sequence[float]] = field(default_factory=dict)
    computed: list[Computed] = field(default_factory=list)
    done: list[tuple[Candidate, str, bool]] = field(default_factory=list)
    """With the outcome of the evaluation, and whether it was known before."""
    reused: list[Evaluation] = field(default_factory=list)
    """Evaluations that were stored when they were looked up; one that was deleted since is stored again."""
    withdrawn: list[Candidate] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    progress: dict[str, Any] | None = None
    spent: Spent = field(default_factory=Spent)
    """What the computed evaluations have cost."""
    got_on: bool = False
    """Whether the job came further than ever, other than by evaluations."""


@dataclass
class Recorded:
    """What became of what was to be recorded."""

    lost: list[Lease] = field(default_factory=list)
    """Leases that do not hold any more: nothing was written for them."""
    known_before: dict[str, Evaluation] = field(default_factory=dict)
    """By key: what another job had recorded first. It stays, and is what a replay will see."""


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """A candidate of a job with its evaluation, if there is one yet."""

    part: str
    number: int
    generation: int
    state: str
    """running, done or withdrawn."""
    key: str
    factors: Factors
    losses_so_far: list[float] | None
    reused: bool
    projected: str | None
    evaluation: Evaluation | None
    worker: str | None
    attempts: int | None
    error: str | None
    recorded_at: float | None


class EvaluationStore:
    """Evaluations by key, candidates by job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lookup(self, keys: Iterable[str], job_id: str, *, own: bool = False) -> dict[str, Evaluation]:
        """The stored evaluations among these keys that a job may use.

        What says something about the candidate is shared between jobs; that a worker died, or had no memory, holds for
        the job that met with it, and there before what others found later: its replay must see the same.

        Args:
            keys: of evaluations.
            job_id: of the job.
            own: only those of the job's own candidates.
        """
        wanted, found = list(keys), {}
        with self._database.reading() as connection:
            for start in range(0, len(wanted), KEYS_AT_ONCE):
                chunk = evaluations.c.key.in_(wanted[start : start + KEYS_AT_ONCE])
                query = select(evaluations).where(chunk, evaluations.c.scope.in_([SHARED, job_id]))
                if own:
                    query = query.where(
                        evaluations.c.key.in_(select(candidates.c.key).where(candidates.c.job_id == job_id))
                    )
                for row in connection.execute(query.order_by(evaluations.c.scope)):
                    found[row.key] = _evaluation(row)
        return found

    def record(self, batches: Mapping[Lease, Batch]) -> Recorded:
        """Write what several jobs have to record, in one transaction.

        Raises:
            DatabaseError: the database cannot be reached; the whole may be written again.
        """
        recorded = Recorded()
        with self._database.writing() as connection:
            if any(batch.done or batch.reused for batch in batches.values()):  # what they point at must not go now
                lock_retention(connection, shared=True)
            for lease in sorted(batches, key=lambda lease: lease.job_id):  # one order of locks for all coordinators
                batch = batches[lease]
                # an update without values is no statement; the fence is asked in any case
                values: dict[str, Any] = {"attempt": lease.attempt}
                if batch.computed or batch.done or batch.got_on:
                    values["claims_in_vain"] = 0
                if batch.progress is not None:
                    values["progress"] = batch.progress
                values |= batch.spent.added()
                try:
                    fenced_update(connection, lease, values)
                except LeaseLostError:
                    recorded.lost.append(lease)
                    continue
                recorded.known_before |= _write(connection, lease.job_id, batch)
        return recorded

    def start_search(self, lease: Lease, target_length: int, study: str, prepared: dict[str, Any]) -> dict[str, Any]:
        """Record that a job starts to evaluate candidates; what was recorded before stays as it is.

        Returns:
            What was prepared when the job started first.

        Raises:
            LeaseLostError: the job is not ours any more.
        """
        values = {
            "job_id": lease.job_id,
            "target_length": target_length,
            "study": study,
            "started_at": now(),
            "prepared": prepared,
        }
        with self._database.writing() as connection:
            fenced_update(connection, lease, {"attempt": lease.attempt})
            connection.execute(insert_for(connection.dialect.name, searches).values(values).on_conflict_do_nothing())
            query = select(searches.c.prepared).where(searches.c.job_id == lease.job_id)
            first: dict[str, Any] = connection.execute(query).scalar_one()
            return first

    def prepared(self, job_id: str) -> dict[str, Any] | None:
        """What was prepared when a job started first; None if it has not started to evaluate."""
        query = select(searches.c.prepared).where(searches.c.job_id == job_id)
        with self._database.reading() as connection:
            found: dict[str, Any] | None = connection.execute(query).scalar_one_or_none()
            return found

    def end_search(self, lease: Lease) -> None:
        """Record that a job has evaluated all of its candidates.

        Raises:
            LeaseLostError: the job is not ours any more.
        """
        ended = update(searches).where(searches.c.job_id == lease.job_id)
        with self._database.writing() as connection:
            fenced_update(connection, lease, {"attempt": lease.attempt})
            connection.execute(ended.values(ended_at=now()))

    def of_job(self, job_id: str, *, part: str = "search", after: int = -1, limit: int = 100) -> list[CandidateRow]:
        """Candidates of a job in the order proposed, after a number."""
        in_page = (candidates.c.job_id == job_id, candidates.c.part == part)
        query = select(*CANDIDATE_COLUMNS).select_from(CANDIDATES).where(*in_page, candidates.c.number > after)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(candidates.c.number).limit(limit))
            return [candidate_row(row) for row in rows]

    def speed_of(self, key: str) -> dict[str, Any] | None:
        """What a worker last measured of models of some size, None if none has; see ``SPEED`` of the search's run."""
        measured = searches.c.prepared["speed"]
        query = select(measured).where(searches.c.prepared[("speed", "key")].as_string() == key)
        with self._database.reading() as connection:
            found: dict[str, Any] | None = connection.execute(
                query.order_by(searches.c.started_at.desc()).limit(1)
            ).scalar()
        return found

    def memory_of_devices(self, kind: str) -> int | None:
        """The most memory in bytes that a worker has measured of a kind of device, such as ``cuda``."""
        memory = searches.c.prepared[("speed", "available")].as_float()
        of_kind = searches.c.prepared[("speed", "device")].as_string().startswith(kind, autoescape=True)
        with self._database.reading() as connection:
            found = connection.execute(select(func.max(memory)).where(of_kind)).scalar()
        return None if found is None else int(found)

    def totals(self) -> dict[str, tuple[int, float]]:
        """Number and seconds of the stored evaluations, by outcome."""
        query = select(evaluations.c.outcome, func.count(), func.sum(evaluations.c.seconds))
        with self._database.reading() as connection:
            rows = connection.execute(query.group_by(evaluations.c.outcome))
            return {outcome: (count, seconds) for outcome, count, seconds in rows}


_RESULT = ("part", "outcome", "losses", "tokens", "losses_at", "seconds", "worker", "attempts", "error", "recorded_at")
_PLACE = ("part", "number", "generation", "state", "key", "factors", "losses_so_far", "reused", "projected")
CANDIDATES = candidates.outerjoin(
    evaluations,
    and_(
        candidates.c.key == evaluations.c.key,
        candidates.c.scope == evaluations.c.scope,
        candidates.c.state == CandidateState.DONE,
    ),
)
CANDIDATE_COLUMNS = [
    *(candidates.c[name] for name in _PLACE),
    *(evaluations.c[name].label(f"result_{name}") for name in _RESULT),
]


def candidate_row(row: Row[Any]) -> CandidateRow:
    """A row of candidates with its evaluation as a value."""
    place = {name: getattr(row, name) for name in _PLACE}
    place["factors"] = factors_of(row.factors)
    result = {name: getattr(row, f"result_{name}") for name in _RESULT}
    evaluation = None
    if result["outcome"] is not None:
        line = {name: result[name] for name in ("outcome", "losses", "tokens", "losses_at", "seconds")}
        evaluation = Evaluation.from_json({"key": row.key, "part": row.part, **row.factors, **line})
    rest = {name: result[name] for name in ("worker", "attempts", "error", "recorded_at")}
    return CandidateRow(**place, evaluation=evaluation, **rest)


def factors_of(document: Mapping[str, Any]) -> Factors:
    """Factors from the JSON that candidates and evaluations keep."""
    return Factors.of(document["rescale_factors"], document["initial_tokens"], document["attention_factor"])


def _evaluation(row: Row[Any]) -> Evaluation:
    names = ("key", "part", "outcome", "losses", "tokens", "losses_at", "seconds")
    return Evaluation.from_json({**row.factors, **{name: getattr(row, name) for name in names}})


def _write(connection: Connection, job_id: str, batch: Batch) -> dict[str, Evaluation]:
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for candidate in batch.started:
        rows[_place(candidate)] = _row(job_id, candidate, CandidateState.RUNNING)
    for candidate, losses in batch.losses_so_far.items():
        rows[_place(candidate)] = _row(job_id, candidate, CandidateState.RUNNING) | {"losses_so_far": list(losses)}
    for candidate in batch.withdrawn:
        rows[_place(candidate)] = _row(job_id, candidate, CandidateState.WITHDRAWN)
    for candidate, outcome, reused in batch.done:
        scope = {"scope": scope_of(outcome, job_id), "reused": reused}
        rows[_place(candidate)] = _row(job_id, candidate, CandidateState.DONE) | scope
    known_before = _write_evaluations(connection, job_id, [*batch.computed, *_deleted_since(connection, batch.reused)])
    if rows:
        connection.execute(_UPSERT_CANDIDATE[connection.dialect.name], list(rows.values()))
    append_events(connection, job_id, batch.events)
    return known_before


def _deleted_since(connection: Connection, reused: Sequence[Evaluation]) -> list[Computed]:
    """Those of these evaluations that are not stored any more: the last job that had them was deleted."""
    missing = {evaluation.key: evaluation for evaluation in reused}
    keys = list(missing)
    for start in range(0, len(keys), KEYS_AT_ONCE):
        known = select(evaluations.c.key).where(evaluations.c.key.in_(keys[start : start + KEYS_AT_ONCE]))
        for key in connection.scalars(known):
            missing.pop(key, None)
    return [Computed(evaluation=evaluation, worker="", attempts=0) for evaluation in missing.values()]


def scope_of(outcome: str, job_id: str) -> str:
    """Of an evaluation of a job."""
    return SHARED if outcome in LASTING else job_id


def _write_evaluations(connection: Connection, job_id: str, computed: Sequence[Computed]) -> dict[str, Evaluation]:
    """Store results, unless there are some already; returns those of other jobs that stay in their place."""
    if not computed:
        return {}
    rows = []
    for item in computed:
        line = item.evaluation.as_json()
        factors = {name: line.pop(name) for name in item.evaluation.factors.as_json()}
        scope = scope_of(item.evaluation.outcome, job_id)
        rest = {"job_id": job_id, "worker": item.worker, "attempts": item.attempts, "error": item.error}
        rows.append({**line, "factors": factors, "scope": scope, **rest})
    rows.sort(key=lambda row: row["key"])  # in one order, or two coordinators could block each other
    connection.execute(_INSERT_EVALUATION[connection.dialect.name], rows)
    keys = evaluations.c.key.in_([row["key"] for row in rows])
    others = select(evaluations).where(keys, evaluations.c.scope == SHARED, evaluations.c.job_id != job_id)
    return {row.key: _evaluation(row) for row in connection.execute(others)}


def _place(candidate: Candidate) -> tuple[Any, ...]:
    return candidate.part, candidate.number


def _row(job_id: str, candidate: Candidate, state: str) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "part": candidate.part,
        "number": candidate.number,
        "generation": candidate.generation,
        "state": state,
        "key": candidate.key,
        "scope": SHARED,
        "factors": candidate.factors.as_json(),
        "losses_so_far": None,
        "reused": False,
    }


def insert_for(dialect: str, table: Table) -> Any:
    """The dialect's insert, which knows ON CONFLICT; both spell it alike."""
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


def _upsert_candidate(dialect: str) -> Any:
    """What is done stays as it is: a replay after a kill finds it known, but this job had it computed."""
    written = insert_for(dialect, candidates)
    columns = ("generation", "state", "key", "scope", "factors", "losses_so_far", "reused")
    return written.on_conflict_do_update(
        index_elements=list(candidates.primary_key),
        set_={name: written.excluded[name] for name in columns},
        where=candidates.c.state != CandidateState.DONE,
    )


def _insert_evaluation(dialect: str) -> Any:
    """The first result of a key stays."""
    return insert_for(dialect, evaluations).values(recorded_at=now()).on_conflict_do_nothing()


_DIALECTS = ("sqlite", "postgresql")
_UPSERT_CANDIDATE = {dialect: _upsert_candidate(dialect) for dialect in _DIALECTS}  # building them takes milliseconds
_INSERT_EVALUATION = {dialect: _insert_evaluation(dialect) for dialect in _DIALECTS}
