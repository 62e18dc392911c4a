"""The projector as a process: what it writes, what it survives, when it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna_dashboard import get_note

from factor_search.measure.evaluation import DIVERGED
from storage.coordinators import CoordinatorStore
from storage.dashboard import projector as projector_module
from storage.dashboard.address import optuna_url_beside
from storage.dashboard.projection import Projection
from storage.dashboard.projector import Projector
from storage.dashboard.unprojected import catch_up
from storage.database import Database
from storage.evaluations import Batch, EvaluationStore
from storage.jobs import JobStore, Lease
from tests.processes import wait_for
from tests.test_projection import PREPARED, REPORT, SPEC, STUDY, candidate, done, opened

OWNER = "coordinator-1"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        yield database


@pytest.fixture
def optuna_url(database: Database) -> str:
    return optuna_url_beside(database.url)


@pytest.fixture
def evaluations(database: Database) -> EvaluationStore:
    return EvaluationStore(database)


def driven(database: Database, owner: str = OWNER, study: str = STUDY) -> Lease:
    JobStore(database).submit(SPEC)
    _, lease = JobStore(database).claim(owner, 60)
    EvaluationStore(database).start_search(lease, 512, study, PREPARED)
    return lease


def note_of(optuna_url: str, study: str = STUDY) -> str:
    with opened(optuna_url) as storage:
        return get_note(optuna.load_study(study_name=study, storage=storage))


def finish(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(20)


@pytest.mark.slow
def test_a_job_is_followed_to_its_end(
    database: Database, optuna_url: str, evaluations: EvaluationStore, capfd: pytest.CaptureFixture[str]
) -> None:
    lease = driven(database)
    process = projector_module.start(database.url, optuna_url, OWNER)
    try:
        evaluations.record({lease: Batch(started=[candidate(number) for number in range(300)])})
        evaluations.record({lease: done(*range(250))})
        evaluations.record({lease: done(*range(250, 300), outcome=DIVERGED)})
        assert catch_up(database, lease.job_id, 30) == 0
        with opened(optuna_url) as storage:
            trials = optuna.load_study(study_name=STUDY, storage=storage).get_trials()
        assert [trial.user_attrs["candidate"] for trial in trials] == list(range(300))
        JobStore(database).end(lease, "finished", report=REPORT, factors={})
        wait_for(lambda: "Full report" in note_of(optuna_url))
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) >= min(19, ours + projector_module.NICENESS)
    finally:
        assert finish(process) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_database_that_is_away_for_a_while(
    database: Database, optuna_url: str, evaluations: EvaluationStore, capfd: pytest.CaptureFixture[str]
) -> None:
    lease = driven(database)
    evaluations.record({lease: done(0)})
    file = Path(optuna_url.removeprefix("sqlite:///"))
    file.mkdir()
    process = projector_module.start(database.url, optuna_url, OWNER)
    said: list[str] = []

    def has_spoken() -> bool:
        said.extend(capfd.readouterr().err.splitlines())
        return bool(said)

    try:
        wait_for(has_spoken, 30)
        time.sleep(1)
        assert process.poll() is None
        assert catch_up(database, lease.job_id, 0) == 1
        file.rmdir()
        assert catch_up(database, lease.job_id, 30) == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        finish(process)
    has_spoken()
    assert len(said) == 1
    assert "cannot use Optuna's tables" in said[0]


def test_only_the_jobs_of_its_coordinator_and_each_fully(
    database: Database, optuna_url: str, evaluations: EvaluationStore
) -> None:
    mine, other = driven(database), driven(database, "another", "another study")
    evaluations.record({mine: done(*range(5)), other: done(0)})
    CoordinatorStore(database).report("another", "host", 1, {})
    with Projection(database, optuna_url) as projection:
        projector = Projector(database, projection, OWNER)
        assert projector.turn()
        assert not projector.turn()
        assert (projection.behind(mine.job_id), projection.behind(other.job_id)) == (0, 1)
        JobStore(database).end(mine, "cancelled")
        projector.turn()
        assert projector._settled.keys() == {mine.job_id}
        CoordinatorStore(database).leave("another")  # what it left is anybody's
        projector.turn()
        assert projection.behind(other.job_id) == 0
    assert "cancelled" in note_of(optuna_url)


def test_what_is_fully_shown_is_not_remembered(
    database: Database, optuna_url: str, evaluations: EvaluationStore
) -> None:
    with Projection(database, optuna_url) as projection:
        projector = Projector(database, projection, OWNER)
        for number in range(3):
            lease = driven(database, study=f"study {number}")
            evaluations.record({lease: done(0)})
            while projector.turn():
                pass
            assert projection.remembered == 1, "the one that runs"
            JobStore(database).end(lease, "cancelled")
            while projector.turn():
                pass
            assert projection.remembered == 0
        assert note_of(optuna_url, "study 2")


def test_a_flaw_in_one_study_does_not_touch_the_others(
    database: Database,
    optuna_url: str,
    evaluations: EvaluationStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flawed, fine = driven(database), driven(database, OWNER, "fine")
    evaluations.record({flawed: done(0), fine: done(0)})
    with Projection(database, optuna_url) as projection:
        project = projection.project

        def failing(job_id: str) -> int:
            if job_id == flawed.job_id:
                raise ZeroDivisionError("a\nflaw")
            return project(job_id)

        monkeypatch.setattr(projection, "project", failing)
        projector = Projector(database, projection, OWNER)
        projector.turn()
        projector.turn()
        assert projection.behind(fine.job_id) == 0
    said = f"dashboard projection: job {flawed.job_id}: ZeroDivisionError: a flaw\n"
    assert capsys.readouterr().err == said


def test_where_optunas_tables_are() -> None:
    assert optuna_url_beside("sqlite:////data/jobs.db") == "sqlite:////data/jobs.dashboard.db"
    assert optuna_url_beside("postgresql://u:p@h/n") == "postgresql://u:p@h/n"
