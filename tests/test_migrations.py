"""A database of version 0.1.0 is migrated with everything in it, and what it left unfinished is continued."""

import json
import shutil
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from factor_search.plan.spec import parse_plan
from factor_search.plan.work import parse_outcome, parse_work
from storage.dashboard.projection import Projection
from storage.database import MIGRATIONS, Database
from storage.evaluations import EvaluationStore
from storage.events import PLAN, read_events
from storage.jobs import SEARCHES, JobStore
from storage.plans import PlanStore
from storage.schema import candidates
from tests.test_earlier import only_known

EARLIER = Path(__file__).parent / "earlier"
PARTS = ("search", "validation", "held_out")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(EARLIER / "scene.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def scene(unpacked: Path, tmp_path: Path) -> Path:
    """A copy of the database, of its Optuna tables and of the ids."""
    for name in ("jobs.db", "jobs.dashboard.db", "ids.json"):
        shutil.copy(unpacked / name, tmp_path)
    return tmp_path


def stored(file: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(file) as connection:
        return sorted(connection.execute(query))


CANDIDATES = "SELECT job_id, part, number, generation, state, key, scope, factors, reused, projected FROM candidates"
SEARCH_ROWS = "SELECT job_id, target_length, study, started_at, ended_at, prepared FROM"
ADDED = {"jobs": {"kept", "lease_seconds", "tokens", "device_seconds"}, "plans": {"kept"}}
"""Columns that are empty, or 0, in what was stored before."""
KEPT = ("jobs", "plans", "plan_stages", "evaluations", "events", "plan_events", "api_keys")


def content(file: Path, searches: str) -> dict[str, list[tuple[Any, ...]]]:
    def columns(name: str) -> str:
        added = ADDED.get(name, ())
        return ", ".join(row[1] for row in stored(file, f"PRAGMA table_info({name})") if row[1] not in added)

    rows = {name: stored(file, f"SELECT {columns(name)} FROM {name}") for name in KEPT}
    return rows | {"candidates": stored(file, CANDIDATES), "searches": stored(file, f"{SEARCH_ROWS} {searches}")}


def test_nothing_is_lost_and_the_way_back_is_open(scene: Path) -> None:
    file = scene / "jobs.db"
    before = content(file, "stages")
    assert all(before[name] for name in ("jobs", "plans", "evaluations", "events", "candidates", "searches"))
    with Database(f"sqlite:///{file}") as database:
        assert database.check_version() == ""
        assert content(file, "searches") == before
        assert {(job.tokens, job.device_seconds) for job in JobStore(database).list(limit=100)} == {(0, 0.0)}
        assert not stored(file, "PRAGMA foreign_key_check")
        migrate(database, command.downgrade, "0002")
    assert content(file, "stages") == before
    assert {number for (number,) in stored(file, "SELECT stage FROM candidates UNION SELECT number FROM stages")} == {0}
    with Database(f"sqlite:///{file}"):
        assert content(file, "searches") == before


def migrate(database: Database, direction: Any, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        direction(config, revision)


def test_rows_are_migrated_on_postgresql_too(postgresql_database: str) -> None:
    with Database(postgresql_database) as database:
        migrate(database, command.downgrade, "0002")
        with database.writing() as connection:
            for statement in SOME_ROWS.split(";"):
                connection.execute(text(statement))
        migrate(database, command.upgrade, "0003")
        [row] = EvaluationStore(database).of_job("j")
        assert (row.number, row.state, row.factors.rescale_factors) == (0, "running", (1.0, 2.0))
        with database.writing() as connection:
            connection.execute(text("DELETE FROM jobs"))
        assert EvaluationStore(database).of_job("j") == []


SOME_ROWS = """
INSERT INTO jobs (id, name, spec, spec_sha256, state, request_sha256, submitted_at, attempt, claims_in_vain, events,
    progress) VALUES ('j', 'n', '{}', 's', 'running', 's', 1, 1, 0, 0, '{}');
INSERT INTO stages (job_id, number, target_length, study, started_at, prepared) VALUES ('j', 0, 512, 's', 1, '{}');
INSERT INTO candidates (job_id, stage, part, number, generation, state, key, scope, factors, reused) VALUES
    ('j', 0, 'search', 0, 0, 'running', 'k', '',
    '{"rescale_factors"\\: [1, 2], "initial_tokens"\\: 0, "attention_factor"\\: 1}', false)
"""


def test_every_record_is_read_as_before(scene: Path) -> None:
    ids = json.loads((scene / "ids.json").read_text())
    with Database(f"sqlite:///{scene / 'jobs.db'}") as database:
        jobs, plans, evaluations = JobStore(database), PlanStore(database), EvaluationStore(database)
        states = {name: (plans if name.startswith("plan") else jobs).get(id).state for name, id in ids.items()}
        assert states["finished"] == states["plan_finished"] == "finished"
        assert states["paused"] == states["plan_paused"] == "paused"
        listed = jobs.list(limit=100)
        assert {ids["finished"], ids["paused"], ids["queued"]} <= {job.id for job in listed}
        for job in listed:
            events = read_events(database, job.id)
            assert [event.number for event in events] == list(range(1, job.events + 1))
            if job.kind in SEARCHES:
                assert job.plan_id is not None or job.parse_spec().sha256 == job.spec_sha256
                assert only_known(job.parse_spec().model_dump(mode="json"), job.spec) == job.spec
            else:
                assert only_known(parse_work(job.spec).model_dump(mode="json"), job.spec) == job.spec
            rows = [row for part in PARTS for row in evaluations.of_job(job.id, part=part)]
            assert all(
                row.evaluation is not None and row.evaluation.key == row.key for row in rows if row.state == "done"
            )
            assert bool(rows) == (job.state != "queued" and job.started_at is not None and job.kind != "export")
        for plan in plans.list(limit=100):
            whole = plans.get(plan.id)
            assert parse_plan(whole.spec).stages
            for stage in whole.stages:
                assert stage.work is None or parse_work(stage.work)
                assert stage.outcome is None or parse_outcome(stage.outcome)
            events = read_events(database, plan.id, of=PLAN)
            assert [event.number for event in events] == list(range(1, plan.events + 1))


def test_the_dashboard_continues_on_its_old_tables(scene: Path) -> None:
    """The study of the paused job is found again, and what is resumed is added to it without doubling a trial."""
    job_id = json.loads((scene / "ids.json").read_text())["paused"]
    optuna = f"sqlite:///{scene / 'jobs.dashboard.db'}"
    trials = "SELECT COUNT(*) FROM trials JOIN studies USING (study_id) WHERE study_name LIKE '%' || '{}'"
    [(before,)] = stored(scene / "jobs.dashboard.db", trials.format(job_id))
    assert before > 0
    with Database(f"sqlite:///{scene / 'jobs.db'}") as database, Projection(database, optuna) as projection:
        while projection.project(job_id):
            pass
        assert projection.behind(job_id) == 0
        shown = EvaluationStore(database).of_job(job_id)
        assert stored(scene / "jobs.dashboard.db", trials.format(job_id)) == [(len(shown),)]
        next_number = len(shown)
        with database.writing() as connection:
            row = {"job_id": job_id, "part": "search", "number": next_number, "generation": 9, "state": "withdrawn"}
            values = row | {"key": "k", "scope": "", "reused": False, "factors": shown[0].factors.as_json()}
            connection.execute(candidates.insert().values(values))
        assert projection.project(job_id) == 1
        projection.summarise(job_id)
        assert stored(scene / "jobs.dashboard.db", trials.format(job_id)) == [(len(shown) + 1,)]
