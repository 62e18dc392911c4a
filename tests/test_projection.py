"""The projection into Optuna's tables: one contract for SQLite and PostgreSQL."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import get_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from sqlalchemy import text

from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OK, PRUNED, WORKER_LOST
from factor_search.spec import parse_spec
from storage.dashboard.optuna_reading import KNOWN_VERSION, MOST_CURVES, FewCurvesStorage, QuickStorage
from storage.dashboard.optuna_tables import TrialTables, one_transaction, open_optuna
from storage.dashboard.projection import Projection
from storage.database import Database
from storage.errors import DatabaseError, NotFoundError
from storage.evaluations import Batch, Candidate, Computed, EvaluationStore
from storage.jobs import JobStore, Lease
from tests import records

PAIRS = 16
STUDY = "one · stage 0"
SPEC = parse_spec({"name": "one *job*", "model": "some/model", "data": ["a.txt"], "target_length": 512})
CLOSED_FORMS = {
    name: Factors.of([1 + (top - 1) * i / (PAIRS - 1) for i in range(PAIRS)]).as_json()
    for name, top in {"yarn": 4.0, "ntk": 3.0, "none": 1.0}.items()
}
PREPARED = {
    "geometry": {"pairs": PAIRS, "original_length": 128, "critical_dimension": 12, "architecture": "Llama"},
    "closed_forms": CLOSED_FORMS,
    "documents": {"search": ["books/a.txt", "books/b.txt"], "held_out": ["books/c.txt"]},
    "space": {"initial_tokens": [0, 4, 16], "attention_factors": [1.1], "lower": 1.0, "upper": 8.0},
}
REPORT = {
    "factors": CLOSED_FORMS["yarn"],
    "results": [{"name": "found", "held_out": 5.5, "standard_error": 0.1}, {"name": "yarn", "held_out": 6.0}],
    "comparison": {"best_closed_form": "yarn", "standard_errors": 3.25},
}
REPORT["results"][1]["standard_error"] = None


def candidate(number: int) -> Candidate:
    lambdas = [1.0 + number * i / 100 for i in range(PAIRS)]
    return records.candidate(number, lambdas=lambdas, initial_tokens=[0, 4, 16][number % 3])


def computed(of: Candidate, outcome: str = OK, losses: tuple[float, ...] = (1.5, 1.25)) -> Computed:
    return records.computed(of, outcome, losses)


def done(*numbers: int, outcome: str = OK, losses: tuple[float, ...] = (1.5, 1.25)) -> Batch:
    items = [candidate(number) for number in numbers]
    results = [computed(item, outcome, losses) for item in items]
    return Batch(computed=results, done=[(item, outcome, False) for item in items])


@contextmanager
def opened(url: str, kind: type[QuickStorage] = QuickStorage) -> Iterator[QuickStorage]:
    storage = open_optuna(url, kind)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


class TestProjectionContract:
    @pytest.fixture(params=["sqlite", "postgresql"])
    def urls(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
        """Of our database and of Optuna's tables."""
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path / 'jobs.db'}", f"sqlite:///{tmp_path / 'dashboard.db'}"
        url = request.getfixturevalue("postgresql_database")
        return url, url

    @pytest.fixture
    def database(self, urls: tuple[str, str]) -> Iterator[Database]:
        with Database(urls[0]) as database:
            yield database

    @pytest.fixture
    def evaluations(self, database: Database) -> EvaluationStore:
        return EvaluationStore(database)

    @pytest.fixture
    def jobs(self, database: Database) -> JobStore:
        return JobStore(database)

    @pytest.fixture
    def lease(self, jobs: JobStore, evaluations: EvaluationStore) -> Lease:
        jobs.submit(SPEC)
        _, lease = jobs.claim("c", 60)
        evaluations.start_search(lease, 512, STUDY, PREPARED)
        return lease

    @pytest.fixture
    def projection(self, database: Database, urls: tuple[str, str]) -> Iterator[Projection]:
        with Projection(database, urls[1]) as projection:
            yield projection

    @pytest.fixture
    def trials(self, urls: tuple[str, str]) -> Iterator[Any]:
        """Reads the trials anew, as another process would."""
        with opened(urls[1]) as storage:
            yield lambda: optuna.load_study(study_name=STUDY, storage=storage).get_trials()

    def test_a_finished_candidate_is_a_complete_trial(
        self, projection: Projection, evaluations: EvaluationStore, lease: Lease, trials: Any
    ) -> None:
        evaluations.record({lease: done(0, 1, 2)})
        assert projection.behind(lease.job_id) == 3
        assert projection.project(lease.job_id) == 3
        assert projection.behind(lease.job_id) == 0
        assert projection.project(lease.job_id) == 0
        found: list[FrozenTrial] = trials()
        assert [trial.number for trial in found] == [trial.user_attrs["candidate"] for trial in found] == [0, 1, 2]
        trial, item = found[2], computed(candidate(2))
        assert trial.state == TrialState.COMPLETE
        assert trial.value == item.evaluation.summary.perplexity
        assert trial.intermediate_values == {0: pytest.approx(math.exp(1.5)), 1: trial.value}
        factors = item.evaluation.factors
        assert list(trial.params) == [f"lambda[{i:02}]" for i in (0, 3, 6, 9, 12, 15)] + ["initial_tokens"]
        assert trial.params["lambda[15]"] == factors.rescale_factors[15]
        assert trial.params["initial_tokens"] == 16
        shown = [float(factor) for factor in trial.user_attrs["rescale_factors"].split(", ")]
        assert shown == pytest.approx(list(factors.rescale_factors), rel=1e-5)
        rest = ("generation", "attention_factor", "outcome", "worker")
        assert [trial.user_attrs[name] for name in rest] == [0, 1.1, OK, "host:1"]
        assert trial.duration is not None
        assert trial.duration.total_seconds() == pytest.approx(0.25, abs=1e-3)

    def test_a_running_candidate_is_seen_document_by_document(
        self, projection: Projection, evaluations: EvaluationStore, lease: Lease, trials: Any
    ) -> None:
        evaluations.record({lease: Batch(started=[candidate(0), candidate(1)])})
        assert projection.project(lease.job_id) == 2
        assert [trial.state for trial in trials()] == [TrialState.RUNNING] * 2
        evaluations.record({lease: Batch(losses_so_far={candidate(0): [1.5]})})
        assert projection.behind(lease.job_id) == 0
        projection.project(lease.job_id)
        assert trials()[0].intermediate_values == {0: pytest.approx(math.exp(1.5))}
        assert "outcome" not in trials()[0].user_attrs
        evaluations.record({lease: done(0)})
        assert projection.project(lease.job_id) == 1
        first, second = trials()
        assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.RUNNING)
        assert list(first.intermediate_values) == [0, 1]
        assert first.user_attrs["worker"] == "host:1"

    def test_what_fails_or_is_withdrawn_has_its_own_state(
        self, projection: Projection, evaluations: EvaluationStore, lease: Lease, trials: Any
    ) -> None:
        evaluations.record({lease: Batch(started=[candidate(number) for number in range(4)])})
        evaluations.record({lease: Batch(losses_so_far={candidate(3): [2.0]})})
        projection.project(lease.job_id, limit=2)
        for number, outcome in enumerate([DIVERGED, WORKER_LOST]):
            evaluations.record({lease: done(number, outcome=outcome)})
        evaluations.record({lease: Batch(withdrawn=[candidate(2), candidate(3)])})
        evaluations.record({lease: done(4, outcome=DIVERGED)})
        evaluations.record({lease: done(5, losses=(1e4, 1e4))})  # finite losses, but not their perplexity
        projection.project(lease.job_id)
        found = trials()
        fail, pruned = TrialState.FAIL, TrialState.PRUNED
        assert [trial.state for trial in found] == [fail, fail, pruned, pruned, fail, fail]
        outcomes = [DIVERGED, WORKER_LOST, "withdrawn", "withdrawn", DIVERGED, OK]
        assert [trial.user_attrs["outcome"] for trial in found] == outcomes
        assert found[1].user_attrs["error"] == "it failed"

    def test_what_was_stopped_early_is_a_pruned_trial_with_its_documents(
        self,
        projection: Projection,
        database: Database,
        urls: tuple[str, str],
        evaluations: EvaluationStore,
        lease: Lease,
        trials: Any,
    ) -> None:
        evaluations.record({lease: Batch(started=[candidate(0), candidate(1)])})
        evaluations.record({lease: Batch(losses_so_far={candidate(0): [1.5]})})
        projection.project(lease.job_id)
        evaluations.record({lease: done(0, 2, outcome=PRUNED, losses=(1.0,))})
        evaluations.record({lease: done(1)})
        evaluations.record({lease: done(3, outcome=PRUNED, losses=(1e4,))})
        projection.project(lease.job_id)
        with database.writing() as connection:  # as if the marks had never been made
            connection.execute(text("UPDATE candidates SET projected = NULL"))
        with Projection(database, urls[1]) as restarted:
            restarted.project(lease.job_id)
            restarted.summarise(lease.job_id)
        projection.project(lease.job_id)
        found: list[FrozenTrial] = trials()
        states = [TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
        assert [trial.state for trial in found] == states, "and none of them twice"
        assert [trial.value for trial in found[2:]] == [pytest.approx(math.exp(1.0)), None]
        assert found[2].intermediate_values == {0: found[2].value}
        assert (found[2].user_attrs["outcome"], found[2].user_attrs["documents"]) == (PRUNED, 1)
        assert "documents" not in found[1].user_attrs
        with opened(urls[1]) as storage:
            study = optuna.load_study(study_name=STUDY, storage=storage)
            assert study.best_trial.user_attrs["candidate"] == 1
            words = get_note(study)
        assert "4 (3 pruned, 1 ok)" in words
        assert f"{found[1].value:.4f}, candidate 1" in words

    def test_killed_between_writing_and_marking(
        self,
        projection: Projection,
        database: Database,
        urls: tuple[str, str],
        evaluations: EvaluationStore,
        lease: Lease,
        trials: Any,
    ) -> None:
        evaluations.record({lease: done(0, 1)})
        evaluations.record({lease: Batch(started=[candidate(2)])})
        projection.project(lease.job_id)
        with database.writing() as connection:  # as if the marks had never been made
            connection.execute(text("UPDATE candidates SET projected = NULL"))
        evaluations.record({lease: done(2, 3)})
        with Projection(database, urls[1]) as restarted:
            assert restarted.project(lease.job_id) == 4
        assert [trial.user_attrs["candidate"] for trial in trials()] == [0, 1, 2, 3]
        assert {trial.state for trial in trials()} == {TrialState.COMPLETE}

    def test_two_alternate(
        self,
        projection: Projection,
        database: Database,
        urls: tuple[str, str],
        evaluations: EvaluationStore,
        lease: Lease,
        trials: Any,
    ) -> None:
        with Projection(database, urls[1]) as other:
            for turn in range(6):
                evaluations.record({lease: Batch(started=[candidate(2 * turn), candidate(2 * turn + 1)])})
                (projection, other)[turn % 2].project(lease.job_id)
                evaluations.record({lease: done(2 * turn)})
                (projection, other)[turn // 2 % 2].project(lease.job_id)
        states = [(trial.user_attrs["candidate"], trial.state.name) for trial in trials()]
        assert states == [(number, "RUNNING" if number % 2 else "COMPLETE") for number in range(12)]

    def test_two_at_the_same_time(
        self, database: Database, urls: tuple[str, str], evaluations: EvaluationStore, lease: Lease, trials: Any
    ) -> None:
        evaluations.record({lease: done(*range(60))})
        errors: list[BaseException] = []

        def catch_up() -> None:
            try:
                with Projection(database, urls[1]) as projection:
                    while projection.project(lease.job_id, limit=7):
                        pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=catch_up) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sorted(trial.user_attrs["candidate"] for trial in trials()) == list(range(60))
        assert sorted(trial.number for trial in trials()) == list(range(60))

    def test_a_candidate_taken_up_again_after_a_pause_gets_a_second_trial(
        self, projection: Projection, jobs: JobStore, evaluations: EvaluationStore, lease: Lease, trials: Any
    ) -> None:
        evaluations.record({lease: Batch(started=[candidate(0), candidate(1)])})
        evaluations.record({lease: Batch(withdrawn=[candidate(0)])})
        projection.project(lease.job_id)
        jobs.pause(lease.job_id)
        jobs.end(lease, "paused")
        assert projection.behind(lease.job_id) == 1
        projection.project(lease.job_id)
        assert [trial.state for trial in trials()] == [TrialState.PRUNED, TrialState.WAITING]
        jobs.resume(lease.job_id)
        _, again = jobs.claim("c", 60)
        evaluations.record({again: Batch(started=[candidate(0), candidate(1)])})
        projection.project(lease.job_id)
        assert [trial.state.name for trial in trials()] == ["PRUNED", "RUNNING", "RUNNING"]
        evaluations.record({again: done(0, 1)})
        projection.project(lease.job_id)
        assert [trial.state.name for trial in trials()] == ["PRUNED", "COMPLETE", "COMPLETE"]
        assert [trial.user_attrs["candidate"] for trial in trials()] == [0, 1, 0]
        assert projection.behind(lease.job_id) == 0

    def test_what_a_job_left_running_is_pruned_when_it_ends(
        self, projection: Projection, jobs: JobStore, evaluations: EvaluationStore, lease: Lease, trials: Any
    ) -> None:
        evaluations.record({lease: Batch(started=[candidate(0), candidate(1)])})
        projection.project(lease.job_id, limit=1)
        jobs.end(lease, "cancelled")
        assert projection.behind(lease.job_id) == 2
        projection.project(lease.job_id)
        assert projection.behind(lease.job_id) == 0
        assert [(trial.state.name, trial.user_attrs["outcome"]) for trial in trials()] == [("PRUNED", "withdrawn")] * 2

    def test_the_note_and_the_figures_follow_the_search(
        self, projection: Projection, jobs: JobStore, evaluations: EvaluationStore, lease: Lease, urls: tuple[str, str]
    ) -> None:
        def page() -> tuple[str, dict[str, Any]]:
            with opened(urls[1]) as storage:
                study = optuna.load_study(study_name=STUDY, storage=storage)
                attributes = storage.get_study_system_attrs(storage.get_study_id_from_name(STUDY))
                drawn = {name: json.loads(figure) for name, figure in get_plotly_graph_objects(attributes).items()}
                return get_note(study), drawn

        assert projection.summarise(lease.job_id)
        words, drawn = page()
        assert r"## one \*job\*" in words
        assert "512 tokens from 128, scale 4" in words
        assert "**Search documents**: 2: a.txt, b.txt" in words
        assert drawn == {}
        evaluations.record({lease: done(0, losses=(2.0, 2.0))})
        evaluations.record({lease: done(1, 2)})
        evaluations.record({lease: done(3, outcome=DIVERGED)})
        projection.project(lease.job_id)
        assert projection.summarise(lease.job_id)
        assert not projection.summarise(lease.job_id)
        words, drawn = page()
        assert "4 (3 ok, 1 diverged)" in words
        assert f"{math.exp(1.375):.3f}"[:4] in words
        curves = {line["name"]: line["y"] for line in drawn["rescale-factors"]["data"]}
        assert curves.keys() == {"yarn", "ntk", "candidate 1"}
        assert curves["candidate 1"] == pytest.approx(list(candidate(1).factors.rescale_factors), rel=1e-4)
        jobs.end(lease, "finished", report=REPORT, factors={})
        assert projection.summarise(lease.job_id)
        words, drawn = page()
        assert "| **found** | 5.5000 | 0.1000 |" in words
        assert "+3.2 standard errors" in words
        assert f"(/v1/jobs/{lease.job_id}/report)" in words
        assert "found" in {line["name"] for line in drawn["rescale-factors"]["data"]}

    def test_another_process_knows_what_was_found_before(
        self,
        projection: Projection,
        database: Database,
        urls: tuple[str, str],
        evaluations: EvaluationStore,
        lease: Lease,
    ) -> None:
        evaluations.record({lease: done(0, 1)})
        projection.project(lease.job_id)
        projection.summarise(lease.job_id)
        with Projection(database, urls[1]) as other, opened(urls[1]) as storage:
            other.summarise(lease.job_id)
            assert "2 (2 ok)" in get_note(optuna.load_study(study_name=STUDY, storage=storage))

    def test_a_study_that_was_deleted_comes_back(
        self,
        projection: Projection,
        database: Database,
        urls: tuple[str, str],
        evaluations: EvaluationStore,
        lease: Lease,
        trials: Any,
    ) -> None:
        evaluations.record({lease: done(0, 1)})
        projection.project(lease.job_id)
        with opened(urls[1]) as storage:
            optuna.delete_study(study_name=STUDY, storage=storage)
        evaluations.record({lease: done(2)})
        with pytest.raises(DatabaseError, match="deleted"):
            projection.project(lease.job_id)
        while projection.project(lease.job_id):
            pass
        assert sorted(trial.user_attrs["candidate"] for trial in trials()) == [0, 1, 2]

    def test_seeds_outside_the_space_are_shown(
        self, projection: Projection, evaluations: EvaluationStore, lease: Lease, trials: Any
    ) -> None:
        wild = replace(candidate(0), factors=Factors.of([0.5] * 8 + [99.0] * 8, 300, 1.0))
        evaluations.record({lease: Batch(computed=[computed(wild)], done=[(wild, OK, False)])})
        evaluations.record({lease: done(1)})
        projection.project(lease.job_id)
        assert (trials()[0].params["lambda[15]"], trials()[0].params["initial_tokens"]) == (99.0, 300)
        assert trials()[1].distributions["lambda[15]"].high == 8.0

    def test_trials_written_in_bulk_are_what_optuna_would_have_written(
        self, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = optuna.create_study()
        for number, state in enumerate([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]):
            study.add_trial(
                optuna.create_trial(
                    state=state,
                    value=1 / 3 if state == TrialState.COMPLETE else None,
                    params={"a": 0.1 + number, "b": number, "c": "x"},
                    distributions={
                        "a": optuna.distributions.FloatDistribution(0.1, 9, log=True),
                        "b": optuna.distributions.IntDistribution(0, 9),
                        "c": optuna.distributions.CategoricalDistribution(["y", "x"]),
                    },
                    user_attrs={"n": number, "text": "ü"},
                    intermediate_values={0: 1.5, 7: 1e300},
                )
            )
        given = study.get_trials()
        written = []
        with opened(urls[1]) as storage:
            assert storage.known_tables is not None
            for version in ("known", "another"):
                monkeypatch.setattr(storage, "known_tables", storage.known_tables if version == "known" else None)
                study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], version)
                for _ in range(2):
                    with one_transaction(storage) as connection:
                        tables = TrialTables(storage)
                        tables.lock(connection, study_id)
                        ids = tables.insert(connection, study_id, given)
                assert [storage.get_trial(trial_id).number for trial_id in ids] == [4, 5, 6, 7]
                written.append([replaced(trial) for trial in storage.get_all_trials(study_id)])
        assert written[0] == written[1] == [replaced(trial) for trial in given] * 2

    def test_trials_are_read_as_optuna_reads_them(self, urls: tuple[str, str]) -> None:
        with opened(urls[1]) as storage:
            study = optuna.create_study(storage=storage)
            study.optimize(odd_objective, n_trials=12, catch=ValueError)
            study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            study.enqueue_trial({"x": 0.5})
            ours = storage.get_all_trials(study._study_id)
            plain = RDBStorage(storage.url)
            theirs = plain.get_all_trials(study._study_id)
            plain.remove_session()
            plain.engine.dispose()
            assert [(trial.number, trial._trial_id, *replaced(trial)) for trial in ours] == [
                (trial.number, trial._trial_id, *replaced(trial)) for trial in theirs
            ]
            assert {trial.state for trial in ours} == set(TrialState)

    def test_the_dashboard_gets_few_curves(
        self, projection: Projection, evaluations: EvaluationStore, lease: Lease, urls: tuple[str, str]
    ) -> None:
        for number in range(40):
            evaluations.record({lease: done(number, losses=(1.0 if number == 30 else 2.0, 2.0))})
        evaluations.record({lease: Batch(losses_so_far={candidate(40): [2.0]})})
        projection.project(lease.job_id)
        with opened(urls[1]) as everything, opened(urls[1], FewCurvesStorage) as few:
            study_id = few.get_study_id_from_name(STUDY)
            assert all(trial.intermediate_values for trial in everything.get_all_trials(study_id))
            for _ in range(2):
                curves = [trial.number for trial in few.get_all_trials(study_id) if trial.intermediate_values]
                assert curves == [*range(MOST_CURVES), 30, 40]

    def test_optunas_tables_and_ours_in_either_order_and_by_many_at_once(self, urls: tuple[str, str]) -> None:
        errors: list[BaseException] = []

        def ours() -> None:
            Database(urls[0]).close()

        def optunas() -> None:
            with opened(urls[1]):
                pass

        def open_both(optuna_first: bool) -> None:
            try:
                for open_one in (optunas, ours) if optuna_first else (ours, optunas):
                    open_one()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=open_both, args=(number % 2 == 0,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        with opened(urls[1]) as storage:
            assert storage.get_current_version() == storage.get_head_version() == KNOWN_VERSION

    def test_an_unknown_job_and_one_without_candidates(self, projection: Projection, database: Database) -> None:
        job, _ = JobStore(database).submit(SPEC)
        with pytest.raises(NotFoundError, match="has no candidates"):
            projection.project(job.id)
        with pytest.raises(NotFoundError):
            projection.project("nothing")


def odd_objective(trial: optuna.Trial) -> float:
    """Something of everything."""
    trial.suggest_float("x", 0, 1)
    trial.suggest_categorical("c", ["a", None, 1])
    trial.set_user_attr("n", [trial.number])
    for step, value in enumerate([1.0, math.inf, -math.inf, 0.1]):
        trial.report(value, 3 - step)
    if trial.number % 4 == 1:
        raise optuna.TrialPruned
    if trial.number % 4 == 2:
        raise ValueError
    return math.inf if trial.number % 4 else trial.suggest_int("i", 1, 64, log=True)


def replaced(trial: FrozenTrial) -> tuple[Any, ...]:
    """All of a trial but what the storage gives it."""
    content = (trial.state, trial.value, trial.params, trial.distributions, trial.user_attrs, trial.system_attrs)
    return (*content, trial.intermediate_values, trial.datetime_start, trial.datetime_complete)


def test_tables_of_another_version_of_optuna_are_refused_in_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'dashboard.db'}"
    with opened(url) as storage, one_transaction(storage) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v2.6.0.a'"))
    with pytest.raises(DatabaseError, match="storage upgrade") as raised:
        open_optuna(url)
    assert "\n" not in str(raised.value)
