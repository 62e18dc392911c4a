"""Warm starts over REST: jobs and files are looked up when a job is submitted, and kept with it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from factor_search.search.warm_start import starting_points
from factor_search.spec import parse_spec
from tests.rest_service import SPEC, FakeCoordinator, app_on, calling, settings
from tests.synthetic import geometry
from tests.test_warm_start import LAMBDAS, document, written

GEOMETRY = geometry(pairs=8, original=64)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with calling(app_on(tmp_path)) as client:
        yield client


@pytest.fixture
def coordinator(tmp_path: Path, client: TestClient) -> Iterator[FakeCoordinator]:
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        yield coordinator


def submit(client: TestClient, status: int, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=SPEC | changes)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def finished(client: TestClient, coordinator: FakeCoordinator, factors: dict[str, Any]) -> str:
    job_id: str = submit(client, 201)["id"]
    coordinator.finish(coordinator.claim(), factors=factors)
    return job_id


def test_a_job_starts_from_an_earlier_one(client: TestClient, coordinator: FakeCoordinator) -> None:
    earlier = finished(client, coordinator, document())
    job = submit(client, 201, warm_start={"jobs": [earlier], "rescale_factors": [[1.0] * 8]})
    assert (job["spec"]["warm_start"]["jobs"], job["spec"]["warm_start"]["files"]) == ([], [])
    (kept,) = job["spec"]["warm_start"]["factors"]
    assert kept["source"] == f"job {earlier}"
    stored = coordinator.jobs.get(job["id"]).parse_spec()  # all that a driver reads, however often
    known, _ = starting_points(stored.warm_start, GEOMETRY, 256)
    assert known.rescale_factors == tuple(LAMBDAS)
    assert submit(client, 201, **job["spec"])["spec"] == job["spec"], "what is shown can be submitted again"


def test_a_file_is_read_when_the_job_is_submitted(client: TestClient, tmp_path: Path) -> None:
    file = written(tmp_path, document())
    job = submit(client, 201, warm_start={"files": [file]})
    Path(file).unlink()
    shown = client.get(f"/v1/jobs/{job['id']}").json()["spec"]
    assert parse_spec(shown).warm_start.factors[0].rescale_factors == LAMBDAS


@pytest.mark.parametrize("job_id", ["0" * 24, "not-an-id", "", "x" * 5000, "../jobs"])
def test_a_job_that_is_not_there(job_id: str, client: TestClient) -> None:
    problem = submit(client, 422, warm_start={"jobs": [job_id]})
    assert problem["errors"][0]["pointer"] == "#/warm_start/jobs/0"
    assert f"there is no job {job_id[:24]}" in problem["detail"].replace("'", "")


def test_a_job_that_is_not_finished(client: TestClient, coordinator: FakeCoordinator) -> None:
    done, waiting = finished(client, coordinator, document()), submit(client, 201)["id"]
    problem = submit(client, 422, warm_start={"jobs": [done, waiting]})
    assert f"job {waiting} is queued and has no factors" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "#/warm_start/jobs/1"
    coordinator.jobs.end(coordinator.claim(), "failed", error="it failed")
    assert f"job {waiting} is failed" in submit(client, 422, warm_start={"jobs": [waiting]})["detail"]


def test_a_job_on_another_model(
    client: TestClient, coordinator: FakeCoordinator, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    for name, target in (("model", checkpoint), ("texts", texts)):
        (tmp_path / name).mkdir()
        for file in target.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    here = {"model": str(tmp_path / "model"), "data": str(tmp_path / "texts" / "*"), "target_length": 256}
    other = document(target_length=64, of=geometry(pairs=8, original=64))
    other["model"]["rope_theta"] = 5.0
    del other["sha256"]
    stranger, fine = finished(client, coordinator, other), finished(client, coordinator, document())
    problem = submit(client, 422, warm_start={"jobs": [stranger]}, **here)
    assert f"job {stranger}: the factors are for rope_theta 5" in problem["detail"]
    submit(client, 201, warm_start={"jobs": [fine]}, **here)


@pytest.mark.parametrize("content", ["", "[1, NaN]", "[0]", "{}"])
def test_a_file_without_factors(content: str, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(content)
    problem = submit(client, 422, warm_start={"files": [str(tmp_path / "known.json")]})
    assert "known.json" in problem["detail"]


def test_a_file_outside_the_roots_is_not_read(client: TestClient, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "known.json"
    outside.write_text(json.dumps("secret"))
    problem = submit(client, 422, warm_start={"files": [str(outside)]})
    assert "warm_start.files" in problem["detail"]
    assert "not in a folder that jobs may use" in problem["detail"]
    for name in ("/etc/passwd", str(outside.parent / "none.json")):
        assert "not in a folder" in submit(client, 422, warm_start={"files": [name]})["detail"]
