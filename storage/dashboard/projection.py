"""The projection of a job's candidates into Optuna's tables, which the dashboard shows. It can be rebuilt at any time.

One study a job, one trial a candidate, found again by its attribute ``candidate``. A trial that Optuna holds for
finished is never changed: a candidate that was withdrawn and is taken up again after a pause gets a second trial.
"""

import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from optuna import Study
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import TrialState
from optuna_dashboard import save_note, save_plotly_graph_object
from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from factor_search.errors import one_line
from factor_search.spec import MEASURES
from storage.dashboard.optuna_tables import TrialTables, one_transaction, open_optuna
from storage.dashboard.study_page import SearchSoFar, figures, note
from storage.dashboard.trials import CANDIDATE, TrialSpace, perplexities_of, result_attributes, state_of, trial_of
from storage.dashboard.unprojected import Unprojected
from storage.database import Database
from storage.errors import DatabaseError, NotFoundError
from storage.evaluations import CandidateRow
from storage.jobs import Job, JobStore
from storage.schema import searches
from storage.states import CandidateState, JobState

WRITER = "factor_search:writer"
"""Study attribute: which projection wrote last; any other has to look at the trials again."""
LIVE_AT_ONCE = 256


@dataclass
class _Trial:
    """What Optuna's tables have of a candidate."""

    id: int
    state: TrialState
    steps: int
    withdrawn: bool = False
    """Its candidate may be taken up again, unlike one that was pruned for its losses."""


@dataclass
class _StudyState:
    """A job's study as far as this projection knows it."""

    study: Study
    id: int
    queue: Unprojected
    target_length: int
    prepared: dict[str, Any]
    space: TrialSpace | None = None
    trials: dict[int, _Trial] = field(default_factory=dict)
    search: SearchSoFar = field(default_factory=SearchSoFar)
    settled: int = 0
    """All candidates before this number are finished and shown so."""
    attempt: int = -1
    page: tuple[str, dict[str, str]] | None = None
    """The note and the figures that were written last."""


class Projection:
    """Brings Optuna's tables up to date. Not for several threads; several processes may write one study alternately."""

    def __init__(self, database: Database, optuna_url: str) -> None:
        """Open Optuna's tables, created if need be.

        Args:
            database: where jobs and candidates are.
            optuna_url: the same PostgreSQL database, or an SQLite file of its own: Optuna commits often.

        Raises:
            DatabaseError: they cannot be reached.
        """
        self._database = database
        self._jobs = JobStore(database)
        self._storage = open_optuna(optuna_url)
        self._tables = TrialTables(self._storage)
        self._studies: dict[str, _StudyState] = {}
        self._me = secrets.token_hex(8)

    def __enter__(self) -> "Projection":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections to Optuna's tables back."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def behind(self, job_id: str) -> int:
        """How many candidates of a job are not shown as they are.

        Raises:
            DatabaseError: the database cannot be reached.
        """
        return Unprojected(self._database, job_id).count()

    def project(self, job_id: str, limit: int = 200) -> int:
        """Write the next candidates that are not shown as they are, and the documents of those that run.

        If it is killed at any point, the next call of any process continues without missing or doubling a trial.

        Returns:
            How many candidates were brought up to date; 0 once all are.

        Raises:
            DatabaseError: one of the databases cannot be reached now.
            NotFoundError: there is no such job, or it evaluates no candidates.
        """
        job = self._jobs.get(job_id)
        with self._known_study(job) as study:
            if study.attempt != job.attempt:  # what was withdrawn may have been taken up again
                study.settled, study.attempt = 0, job.attempt
            rows = study.queue.read(job.state, study.settled, limit)
            live = study.queue.running(study.settled, LIVE_AT_ONCE) if job.state == JobState.RUNNING else []
            if rows or any(self._unseen(study, row) for row in live):
                with self._writing(study) as connection:
                    self._write(study, connection, rows)
                    for row in live:
                        self._report(study.trials.get(row.number), row)
                study.queue.mark((row.number, shown) for row, shown in rows)
            _advance(study, None if len(rows) < limit else rows[-1][0].number)
        return len(rows)

    def summarise(self, job_id: str) -> bool:
        """Write the study's note and figures if they have changed; returns whether they had.

        Raises:
            DatabaseError: one of the databases cannot be reached now.
            NotFoundError: there is no such job, or it evaluates no candidates.
        """
        job = self._jobs.get(job_id)
        report = self._jobs.document(job_id, "report")
        with self._known_study(job) as study:
            text = note(job, study.target_length, study.prepared, study.search, report)
            drawn = figures(study.prepared, study.search, report)
            page = (text, {name: figure.to_json() for name, figure in drawn.items()})
            if page == study.page:
                return False
            with self._writing(study):
                before = study.page or ("", {})
                if text != before[0]:
                    save_note(study.study, text)
                for name, figure in drawn.items():
                    if page[1][name] != before[1].get(name):
                        save_plotly_graph_object(study.study, figure, graph_object_id=name)
            study.page = page
        return True

    def forget(self, job_id: str) -> None:
        """Drop what is remembered of a study that is as it shall be; the next call for it looks at the tables again."""
        self._studies.pop(job_id, None)

    @property
    def remembered(self) -> int:
        """How many studies are remembered."""
        return len(self._studies)

    @contextmanager
    def _known_study(self, job: Job) -> Iterator[_StudyState]:
        """The study of a job; forgotten if anything goes wrong, so that the next call looks at the tables again."""
        try:
            if job.id not in self._studies:
                self._studies[job.id] = self._open_study(job)
            yield self._studies[job.id]
        except (SQLAlchemyError, StorageInternalError) as error:
            self._studies.pop(job.id, None)
            raise DatabaseError(f"cannot write Optuna's tables: {one_line(error.__cause__ or error)}") from error
        except BaseException:
            self._studies.pop(job.id, None)
            raise

    def _open_study(self, job: Job) -> _StudyState:
        query = select(searches).where(searches.c.job_id == job.id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFoundError(f"job {job.id} has no candidates")
        try:
            study_id = self._storage.get_study_id_from_name(row.study)
        except KeyError:
            with one_transaction(self._storage):
                study_id = self._create_study(row.study, job, row.target_length)
        study = Study(row.study, self._storage)
        queue = Unprojected(self._database, job.id)
        known = _StudyState(study, study_id, queue, row.target_length, row.prepared)
        with self._writing(known):
            return known

    def _create_study(self, name: str, job: Job, target_length: int) -> int:
        try:
            study_id = self._storage.create_new_study([StudyDirection.MINIMIZE], name)
        except DuplicatedStudyError:
            return self._storage.get_study_id_from_name(name)
        study = Study(name, self._storage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([MEASURES[(job.spec.get("objective") or {}).get("kind", "perplexity")]])
        study.set_user_attr("job", job.id)
        study.set_user_attr("target_length", target_length)
        return study_id

    @contextmanager
    def _writing(self, study: _StudyState) -> Iterator[Connection]:
        """One transaction that holds the study against other projections, and knows what they wrote before."""
        with one_transaction(self._storage) as connection:
            self._tables.lock(connection, study.id)
            if self._storage.get_study_system_attrs(study.id).get(WRITER) != self._me:
                self._storage.set_study_system_attr(study.id, WRITER, self._me)
                self._load(study)
            yield connection

    def _load(self, study: _StudyState) -> None:
        study.trials, study.search, study.settled = {}, SearchSoFar(), 0
        for trial in self._storage.get_all_trials(study.id, deepcopy=False):
            number = trial.user_attrs.get(CANDIDATE)
            if number is None:  # somebody else's
                continue
            trial_id = -1  # a finished trial is never touched again
            if not trial.state.is_finished():
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(study.id, trial.number)
            withdrawn = trial.user_attrs.get("outcome") == CandidateState.WITHDRAWN
            study.trials[number] = _Trial(trial_id, trial.state, len(trial.intermediate_values), withdrawn)
            factors = [float(factor) for factor in trial.user_attrs["rescale_factors"].split(", ")]
            study.search.saw(number, trial.user_attrs.get("outcome"), trial.value, factors)
        study.queue.forget_lost(study.trials)

    def _write(self, study: _StudyState, connection: Connection, rows: list[tuple[CandidateRow, str]]) -> None:
        new = []
        for row, shown in rows:
            known = study.trials.get(row.number)
            taken_up_again = known and known.withdrawn and shown != CandidateState.WITHDRAWN
            if known is None or taken_up_again:
                new.append((row, shown))
            elif not known.state.is_finished():
                self._update(known, row, shown)
        if new:
            if study.space is None:
                study.space = TrialSpace.of(study.prepared, len(new[0][0].factors.rescale_factors))
            trials = [trial_of(row, shown, study.space) for row, shown in new]
            ids = self._tables.insert(connection, study.id, trials)
            for (row, shown), trial_id, trial in zip(new, ids, trials, strict=True):
                withdrawn = shown == CandidateState.WITHDRAWN
                study.trials[row.number] = _Trial(trial_id, trial.state, len(trial.intermediate_values), withdrawn)
        for row, shown in rows:
            outcome, (_, value) = result_attributes(row, shown).get("outcome"), state_of(row, shown)
            study.search.saw(row.number, outcome, value, row.factors.rescale_factors)

    def _update(self, known: _Trial, row: CandidateRow, shown: str) -> None:
        """Bring a trial up to date that is not finished."""
        state, value = state_of(row, shown)
        self._report(known, row)
        for name, attribute in result_attributes(row, shown).items():
            self._storage.set_trial_user_attr(known.id, name, attribute)
        if state != known.state:
            self._storage.set_trial_state_values(known.id, state, None if value is None else [value])
            known.state, known.withdrawn = state, shown == CandidateState.WITHDRAWN

    def _report(self, known: _Trial | None, row: CandidateRow) -> None:
        """Add the documents that are known by now."""
        if known is None or known.state.is_finished():
            return
        perplexities = perplexities_of(row)
        for step in range(known.steps, len(perplexities)):
            self._storage.set_trial_intermediate_value(known.id, step, perplexities[step])
        known.steps = max(known.steps, len(perplexities))

    def _unseen(self, study: _StudyState, row: CandidateRow) -> bool:
        known = study.trials.get(row.number)
        return known is not None and not known.state.is_finished() and len(perplexities_of(row)) > known.steps


def _advance(study: _StudyState, until: int | None) -> None:
    """Pass over what is finished and marked: all that was there, or what was read."""
    while (known := study.trials.get(study.settled)) is not None and known.state.is_finished():
        if until is not None and study.settled > until:
            break
        study.settled += 1
