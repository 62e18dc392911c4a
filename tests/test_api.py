"""Submitting, listing, steering, reading results, health and metrics; on both databases where they might differ."""

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.testclient import TestClient

from api.app import create_app
from factor_search.spec import parse_spec
from storage.errors import DatabaseError
from tests.conftest import COMMIT
from tests.processes import wait_for
from tests.rest_service import SPEC, FakeCoordinator, app_on, calling, candidate, progress, settings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with calling(app_on(tmp_path)) as client:
        yield client


@pytest.fixture
def coordinator(tmp_path: Path, client: TestClient) -> Iterator[FakeCoordinator]:
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        yield coordinator


def submit(client: TestClient, **headers: str) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=SPEC, headers=headers)
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def test_a_submitted_job_is_queued_with_all_defaults_and_says_if_nobody_will_start_it(client: TestClient) -> None:
    response = client.post("/v1/jobs", json=SPEC)
    job = response.json()
    assert (response.status_code, response.headers["location"]) == (201, f"/v1/jobs/{job['id']}")
    pinned = SPEC | {"model": {"id": SPEC["model"], "revision": COMMIT}, "data": SPEC["data"] | {"revision": COMMIT}}
    assert job["spec"] == parse_spec(pinned).model_dump(mode="json")
    assert (job["state"], job["progress"], job["started_at"]) == ("queued", None, None)
    assert job["submitted_at"].endswith("Z")
    assert "no coordinator is running" in job["note"]
    assert client.get(job["links"]["self"]).json() == job


def test_with_a_coordinator_there_is_nothing_to_note(client: TestClient, coordinator: FakeCoordinator) -> None:
    assert submit(client)["note"] is None


def test_the_same_idempotency_key_makes_one_job(client: TestClient) -> None:
    first = submit(client, **{"Idempotency-Key": "k"})
    again = client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    other = client.post("/v1/jobs", json=SPEC | {"seed": 1}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 409
    assert first["id"] in other.json()["detail"]
    assert submit(client)["id"] != first["id"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_threads_with_one_idempotency_key_make_one_job(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    changes = {"database_url": request.getfixturevalue("postgresql_database")} if kind == "postgresql" else {}
    with calling(app_on(tmp_path, **changes)) as client:
        answers: list[tuple[int, str]] = []

        def send() -> None:
            response = client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "one"})
            answers.append((response.status_code, response.json()["id"]))

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in answers) == [200] * 7 + [201]
        assert len({job_id for _, job_id in answers}) == 1


def test_pages_hold_every_job_once_while_others_come_in(client: TestClient) -> None:
    ids = [submit(client)["id"] for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
        submit(client)
    assert seen == ids[::-1]


def test_jobs_are_listed_by_state(client: TestClient) -> None:
    first, second = submit(client)["id"], submit(client)["id"]
    assert client.post(f"/v1/jobs/{first}/pause").json()["state"] == "paused"
    for state, expected in (("paused", [first]), ("queued", [second]), ("failed", [])):
        assert [job["id"] for job in client.get("/v1/jobs", params={"state": state}).json()["jobs"]] == expected


def test_steering(client: TestClient, coordinator: FakeCoordinator) -> None:
    job = submit(client)["id"]
    for action, state in (("pause", "paused"), ("pause", "paused"), ("resume", "queued"), ("resume", "queued")):
        assert client.post(f"/v1/jobs/{job}/{action}").json()["state"] == state
    coordinator.claim()
    asked = client.post(f"/v1/jobs/{job}/cancel").json()
    assert (asked["state"], asked["request"], asked["coordinator"]) == ("running", "cancel", "fake")
    refused = client.post(f"/v1/jobs/{job}/pause")
    assert refused.status_code == 409
    assert "cancel" in refused.json()["detail"]


def test_progress_and_evaluations_of_a_running_job(client: TestClient, coordinator: FakeCoordinator) -> None:
    job = submit(client)["id"]
    lease = coordinator.claim()
    for number in range(3):
        coordinator.generation(lease, number)
    shown = client.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["progress"]) == ("running", progress(3))
    seen: list[dict[str, Any]] = []
    after: int | None = -1
    while after is not None:
        page = client.get(f"/v1/jobs/{job}/evaluations", params={"after": after, "limit": 5}).json()
        seen += page["evaluations"]
        after = page["next"]
    assert [item["number"] for item in seen] == list(range(12))
    fine, pruned, diverged = seen[0], seen[2], seen[3]
    assert fine["loss"] == pytest.approx((511 * 1.5 + 510 * 1.25) / 1021)
    assert fine["perplexity"] == pytest.approx(math.exp((511 * 1.5 + 510 * 1.25) / 1021))
    assert fine["rescale_factors"] == list(candidate(0).factors.rescale_factors)
    assert fine["losses_at"] == {"256": [1.5 + 0.1, 1.25 + 0.1], "512": [1.5, 1.25]}
    assert [item["documents"] for item in seen[:4]] == [2, 2, 1, 0]
    assert (pruned["outcome"], pruned["losses"], pruned["tokens"]) == ("pruned", [1.5], [511])
    assert (pruned["perplexity"], pruned["loss"]) == (pytest.approx(math.exp(1.5)), 1.5)
    assert (diverged["outcome"], diverged["perplexity"], diverged["loss"]) == ("diverged", None, None)
    for part in ("held_out", "held_out_text"):
        assert client.get(f"/v1/jobs/{job}/evaluations", params={"part": part}).json()["evaluations"] == []


@pytest.mark.parametrize("name", ["factors", "report"])
def test_results_before_the_end_are_a_conflict_that_names_the_state(
    name: str, client: TestClient, coordinator: FakeCoordinator
) -> None:
    job = submit(client)["id"]
    assert "is queued" in client.get(f"/v1/jobs/{job}/{name}").json()["detail"]
    coordinator.jobs.end(coordinator.claim(), "failed", error="no file matches x")
    response = client.get(f"/v1/jobs/{job}/{name}")
    assert response.status_code == 409
    assert "is failed" in response.json()["detail"]
    assert "no file matches x" in response.json()["detail"]
    assert client.get(f"/v1/jobs/{job}").json()["error"] == "no file matches x"


def test_numbers_that_json_cannot_hold_become_null(client: TestClient, coordinator: FakeCoordinator) -> None:
    job = submit(client)["id"]
    lease = coordinator.claim()
    nothing = progress(1, best_perplexity=float("inf"))
    coordinator.evaluations.record({lease: coordinator_batch(nothing)})
    assert client.get(f"/v1/jobs/{job}").json()["progress"]["best_perplexity"] is None
    coordinator.finish(lease, report={"x": [float("nan")]})
    assert client.get(f"/v1/jobs/{job}/report").json() == {"x": [None]}
    assert '"best_perplexity": null' in client.get(f"/v1/jobs/{job}/events").text


def coordinator_batch(values: dict[str, Any]) -> Any:
    from storage.evaluations import Batch

    return Batch(progress=values, events=[("progress", values)])


def test_health_and_readiness(client: TestClient, coordinator: FakeCoordinator) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    wait_for(lambda: client.get("/readyz").json()["coordinators"])
    readiness = client.get("/readyz").json()
    assert 0 <= readiness.pop("age_seconds") < 5
    assert readiness == {"status": "ready", "database": "reachable", "coordinators": 1}


def test_a_database_that_is_away_is_503_and_not_the_end(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(client)["id"]

    def away(*arguments: object) -> None:
        raise DatabaseError("cannot use the database postgresql://u:***@h/x: gone")

    with monkeypatch.context() as patch:
        patch.setattr("storage.database.Database.reading", away)
        patch.setattr("storage.database.Database.writing", away)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        for method, path in (("GET", "/v1/jobs"), ("GET", f"/v1/jobs/{job}"), ("GET", "/readyz")):
            response = client.request(method, path)
            assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
            assert int(response.headers["retry-after"]) > 0
            assert "postgresql" not in response.text
        assert client.get("/healthz").status_code == 200
    assert client.get(f"/v1/jobs/{job}").status_code == 200


def test_a_database_whose_connections_are_all_taken_is_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise PoolTimeoutError("QueuePool limit of size 8 overflow 10 reached")

    monkeypatch.setattr("sqlalchemy.engine.Engine.connect", full)
    assert client.get("/v1/jobs").status_code == 503


def test_metrics(client: TestClient, coordinator: FakeCoordinator) -> None:
    submit(client)
    coordinator.generation(coordinator.claim(), 0)
    client.get("/v1/nothing")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["factor_search_database_reachable",] == 1
    assert samples["factor_search_jobs", "running"] == 1
    assert samples["factor_search_jobs", "failed"] == 0
    assert samples["factor_search_evaluations_total", "ok"] == 2
    assert samples["factor_search_evaluations_total", "pruned"] == 1
    assert samples["factor_search_evaluations_total", "diverged"] == 1
    assert samples["factor_search_evaluation_seconds_total", "ok"] == pytest.approx(0.5)
    assert samples["factor_search_coordinators",] == 1
    assert (samples["factor_search_workers", "alive"], samples["factor_search_workers", "busy"]) == (2, 1)
    assert samples["factor_search_http_requests_total", "/v1/jobs", "201", "POST"] == 1
    assert samples["factor_search_http_requests_total", "404", "GET", "unmatched"] == 1
    assert samples["factor_search_http_request_seconds_count", "/v1/jobs", "POST"] == 1


def test_metrics_without_a_database_say_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: object) -> None:
        raise DatabaseError("gone")

    client.headers["Authorization"] = "Bearer x"  # looking it up needs the database
    assert client.get("/metrics").status_code == 401
    del client.headers["Authorization"]
    monkeypatch.setattr("storage.jobs.JobStore.count_by_state", away)
    assert "factor_search_database_reachable 0.0" in client.get("/metrics").text


def test_two_servers_on_one_database_are_one_service(tmp_path: Path) -> None:
    with calling(create_app(settings(tmp_path))) as one, calling(create_app(settings(tmp_path))) as other:
        job = submit(one)["id"]
        assert other.post(f"/v1/jobs/{job}/pause").json()["state"] == "paused"
        assert one.get(f"/v1/jobs/{job}").json()["state"] == "paused"
        assert other.post(f"/v1/jobs/{job}/cancel").status_code == 200
        assert one.get(f"/v1/jobs/{job}/events").text.count("id: ") == 3
