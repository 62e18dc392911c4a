"""The dashboard as the service serves it: through the mounted application, and in a real browser."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.dashboard import Dashboard
from bench.dashboard import browse, chromium, new_job, record_search
from storage.dashboard.address import optuna_url_beside
from storage.dashboard.projection import Projection
from storage.database import Database
from storage.errors import DatabaseError
from storage.evaluations import Batch, EvaluationStore
from tests.rest_service import serving, settings
from tests.test_projection import candidate, done

CACHED_SECONDS = 2.0
"""So long the dashboard answers for a small study without looking."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        yield database


@pytest.fixture
def projection(database: Database) -> Iterator[Projection]:
    with Projection(database, optuna_url_beside(database.url)) as projection:
        yield projection


def trials_of(client: TestClient, after: int = 0) -> list[dict[str, Any]]:
    answer = client.get("/api/studies/1", params={"after": after})
    assert answer.status_code == 200
    trials: list[dict[str, Any]] = answer.json()["trials"]
    return trials


def test_the_mounted_dashboard_shows_what_another_process_writes(database: Database, projection: Projection) -> None:
    evaluations, lease = EvaluationStore(database), new_job(database, "one")
    app = FastAPI()
    app.mount("/", Dashboard(optuna_url_beside(database.url)))
    with TestClient(app) as client:
        assert client.get("/dashboard").status_code == 200
        assert client.get("/api/studies").json() == {"study_summaries": []}
        evaluations.record({lease: Batch(started=[candidate(0), candidate(1)])})
        projection.project(lease.job_id)
        assert [trial["state"] for trial in trials_of(client)] == ["Running", "Running"]
        evaluations.record({lease: Batch(losses_so_far={candidate(1): [1.0, 2.0]})})
        evaluations.record({lease: done(0, 2)})
        projection.project(lease.job_id)
        projection.summarise(lease.job_id)
        time.sleep(CACHED_SECONDS)
        first, second, third = trials_of(client)
        assert [trial["state"] for trial in (first, second, third)] == ["Complete", "Running", "Complete"]
        assert len(second["intermediate_values"]) == 2
        assert [trial["number"] for trial in trials_of(client, after=2)] == [2]
        study = client.get("/api/studies/1").json()
        assert "2 (2 ok)" in study["note"]["body"]
        assert {figure["id"] for figure in study["plotly_graph_objects"]} == {"rescale-factors"}
        assert study["objective_names"] == ["perplexity"]


def test_large_answers_are_compressed(database: Database, projection: Projection) -> None:
    lease = new_job(database, "one")
    record_search(database, lease, 64)
    projection.project(lease.job_id)
    with TestClient(Dashboard(optuna_url_beside(database.url))) as client:
        answer = client.get("/api/studies/1", params={"after": 0})
        assert answer.headers["content-encoding"] == "gzip"
        assert len(answer.json()["trials"]) == 64
        plain = client.get("/api/studies/1", params={"after": 0}, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.json() == answer.json()
        del client.headers["Accept-Encoding"]
        assert client.get("/static/bundle.js", headers={"Accept-Encoding": ""}).status_code == 200
        assert client.head("/dashboard").status_code == 200


def test_the_policy_of_the_dashboard_is_kept_and_narrowed(database: Database, tmp_path: Path) -> None:
    app = create_app(settings(tmp_path), Dashboard(optuna_url_beside(database.url)))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/dashboard")
        policies = page.headers.get_list("content-security-policy")
        assert page.status_code == 200
        assert any("script-src 'self'" in policy for policy in policies)
        assert any("frame-ancestors 'none'" in policy and "default-src" not in policy for policy in policies)
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert "no-store" not in client.get("/static/bundle.js").headers.get("cache-control", "")


def test_a_dashboard_that_cannot_be_opened_is_a_problem_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, opened = threading.Event(), []

    def unreachable(url: str) -> Any:
        opened.append(url)
        release.wait(60)
        raise DatabaseError("gone")

    monkeypatch.setattr("api.dashboard._opened", unreachable)
    with (
        TestClient(create_app(settings(tmp_path), Dashboard("sqlite://")), base_url="http://127.0.0.1") as client,
        ThreadPoolExecutor(21) as threads,
    ):
        asked = [threads.submit(client.get, "/dashboard") for _ in range(20)]
        try:
            jobs = threads.submit(client.get, "/v1/jobs").result(20)
        finally:
            release.set()
        assert jobs.status_code == 200, "its thread is not one of those that wait"
        answers = [one.result() for one in asked]
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
        assert len(opened) <= 3, "at once for all"


@pytest.mark.slow
def test_in_a_browser(database: Database, projection: Projection, tmp_path: Path) -> None:
    executable = chromium()
    if executable is None:
        pytest.skip("there is no Chromium here")
    lease = new_job(database, "one")
    record_search(database, lease, 200)
    projection.project(lease.job_id)
    projection.summarise(lease.job_id)
    app = create_app(settings(tmp_path), Dashboard(optuna_url_beside(database.url)))
    with serving(app) as address:  # with all headers that restrict pages
        browsed = browse(address, 1, 200, executable, 1, tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert browsed.requests[0][0] == "/api/studies/1?after=0"
