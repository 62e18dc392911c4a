"""Whatever is sent, the answer is no 5xx, and every refusal is a problem document."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.rest_service import SPEC, app_on, calling, serving
from workers.policy import Policy

JOB = "0" * 24
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    changes = {}
    if request.param == "postgresql":
        changes["database_url"] = request.getfixturevalue("postgresql_server")
    with calling(app_on(tmp_path_factory.mktemp("service"), **changes)) as client:
        yield client


def check_problem(response: Any, status: int | None = None) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert problem["status"] == response.status_code
    assert status in (None, response.status_code), problem
    assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
    assert problem["detail"]
    assert "\n" not in problem["detail"]
    return problem


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/jobs/", 404),
        ("GET", f"/v1/jobs/{JOB}", 404),
        ("GET", "/v1/jobs/not-an-id", 404),
        ("GET", "/v1/jobs/%00", 404),
        ("GET", "/v1/jobs/%ff%fe", 404),
        ("GET", "/v1/jobs/..%2f..%2fetc", 404),
        ("GET", f"/v1/jobs/{'x' * 5000}", 404),
        ("POST", f"/v1/jobs/{JOB}/pause", 404),
        ("POST", f"/v1/jobs/{JOB}/resume", 404),
        ("POST", f"/v1/jobs/{JOB}/cancel", 404),
        ("POST", f"/v1/jobs/{JOB}/explode", 404),
        ("GET", f"/v1/jobs/{JOB}/events", 404),
        ("GET", f"/v1/jobs/{JOB}/evaluations", 404),
        ("GET", f"/v1/jobs/{JOB}/factors", 404),
        ("GET", f"/v1/jobs/{JOB}/factors?format=gguf9", 422),
        ("GET", f"/v1/jobs/{JOB}/report", 404),
        ("GET", f"/v1/jobs/{JOB}/report?format=pdf", 422),
        ("GET", f"/v1/jobs/{JOB}/evaluations?part=all", 422),
        ("GET", f"/v1/jobs/{JOB}/evaluations?limit=0", 422),
        ("GET", f"/v1/jobs/{JOB}/evaluations?limit=1001", 422),
        ("GET", f"/v1/jobs/{JOB}/evaluations?after={2**70}", 422),
        ("GET", f"/v1/jobs/{JOB}/events?after=-1", 422),
        ("GET", f"/v1/jobs/{JOB}/events?after={2**70}", 422),
        ("GET", "/v1/jobs?limit=0", 422),
        ("GET", "/v1/jobs?limit=many", 422),
        ("GET", f"/v1/jobs?limit={'9' * 5000}", 422),
        ("GET", "/v1/jobs?state=lost", 422),
        ("GET", "/v1/jobs?cursor=", 422),
        ("GET", "/v1/jobs?cursor=x", 422),
        ("GET", "/v1/jobs?cursor=%00", 422),
        ("GET", "/v1/jobs?cursor=" + "A" * 5000, 422),
        ("GET", "/v1/jobs?cursor=bmFuIDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMA", 422),  # nan 000...
        ("GET", "/v1/jobs?cursor=MSAweA", 422),  # 1 0x
        ("PUT", "/v1/jobs", 405),
        ("DELETE", f"/v1/jobs/{JOB}", 404),
        ("PATCH", f"/v1/jobs/{JOB}", 405),
        ("GET", f"/v1/jobs/{JOB}/pause", 405),
        ("POST", "/healthz", 405),
        ("POST", "/openapi.json", 405),
        ("BREW", "/v1/jobs", 405),
    ],
)
def test_what_is_not_there_or_malformed(method: str, path: str, status: int, client: TestClient) -> None:
    response = client.request(method, path)
    check_problem(response, status)
    if status == 405:
        assert method not in response.headers["allow"].split(", ")


def test_405_names_every_method(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        allowed = client.put(re.sub(r"\{\w+\}", JOB, path)).headers["allow"]
        assert allowed == ", ".join(sorted(method.upper() for method in operations)), path
    assert {"DELETE"} <= {method.upper() for operations in paths.values() for method in operations}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'"\\ud800"', 422),
        (b"null", 422),
        (b"[]", 422),
        (b"7", 422),
        (b"{}", 422),
        (b"[" * 100_000, 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"target_length": ' + b"9" * 5000 + b"}", 400),
        (b'{"seed": NaN}', 400),
        (b'{"seed": 1, "seed": 2}', 400),
        (json.dumps(SPEC | {"name": "a\0b"}).encode(), 422),
        (json.dumps(SPEC | {"name": "a\nb"}).encode(), 422),
        (json.dumps(SPEC | {"name": "a\ud800"}).encode(), 422),
        (json.dumps(SPEC | {"x\0": 1}).encode(), 422),
        (json.dumps(SPEC | {"\ud800": 1}).encode(), 422),
        (json.dumps(SPEC | {"model": {"id": "a", "attention": "\x1b[2J"}}).encode(), 422),
        (json.dumps(SPEC | {"seed": 2**53}).encode(), 422),
        (json.dumps(SPEC | {"target_length": 1e300}).encode(), 422),
        (json.dumps(SPEC | {"budget": {"seconds": 1}}).encode().replace(b"1}", b"1e999}"), 422),
        (json.dumps(SPEC | {"unknown": 1}).encode(), 422),
        (json.dumps(SPEC | {f"k{n}": 1 for n in range(5000)}).encode(), 422),
        (json.dumps(SPEC | {"data": ["/etc/passwd"]}).encode(), 422),
        (json.dumps(SPEC | {"model": {"id": "a", "trust_remote_code": True}}).encode(), 422),
    ],
)
def test_bodies(body: bytes, status: int, client: TestClient) -> None:
    problem = check_problem(client.post("/v1/jobs", content=body, headers=JSON), status)
    assert len(json.dumps(problem)) < 20_000


def test_each_fault_has_its_place(client: TestClient) -> None:
    body = SPEC | {"target_length": 0, "budget": {"candidates": -1}, "a/b": 1}
    problem = check_problem(client.post("/v1/jobs", json=body), 422)
    pointers = {fault["pointer"] for fault in problem["errors"]}
    assert pointers == {"#/target_length", "#/budget/candidates", "#/a~1b"}


def test_the_place_of_a_fault_is_one_of_the_document_that_was_sent(client: TestClient) -> None:
    body = SPEC | {"data": ["a", None], "budget": 0, "strategy": "none"}
    problem = check_problem(client.post("/v1/jobs", json=body), 422)
    assert {fault["pointer"] for fault in problem["errors"]} == {"#/data/1", "#/budget", "#/strategy"}


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types(kind: str | None, client: TestClient) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    check_problem(client.post("/v1/jobs", content=json.dumps(SPEC), headers=headers), 415)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_content_types_of_json(kind: str, client: TestClient) -> None:
    assert client.post("/v1/jobs", content=json.dumps(SPEC), headers={"Content-Type": kind}).status_code == 201


@pytest.mark.parametrize("key", ["", " ", "x" * 201, "a b", "é".encode("latin-1"), b"\xff"])
def test_idempotency_keys_that_are_none(key: str | bytes, client: TestClient) -> None:
    headers = {"Idempotency-Key": key}
    check_problem(client.post("/v1/jobs", json=SPEC, headers=headers), 422)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "9" * 30, "٣", "2"])
def test_last_event_ids_that_are_none(number: str, client: TestClient) -> None:
    job = client.post("/v1/jobs", json=SPEC).json()["id"]
    response = client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": number.encode()})  # type: ignore[dict-item]
    check_problem(response, 422)


def test_a_body_that_is_too_large(client: TestClient) -> None:
    check_problem(client.post("/v1/jobs", content=b" " * (2**20 + 1), headers=JSON), 413)
    chunks = (b" " * 2**18 for _ in range(5))
    check_problem(client.post("/v1/jobs", content=chunks, headers=JSON), 413)
    for path in ("storage/prune", f"jobs/{JOB}/keep", f"plans/p{JOB}/retry", f"plans/p{JOB}/checkpoint"):
        chunks = (b" " * 2**10 for _ in range(17))
        check_problem(client.post(f"/v1/{path}", content=chunks, headers=JSON), 413)
        check_problem(client.post(f"/v1/{path}", content=b" " * (2**14 + 1), headers=JSON), 413)
    exactly = json.dumps(SPEC).encode().ljust(2**20)
    assert client.post("/v1/jobs", content=exactly, headers=JSON).status_code == 201


def test_an_error_nobody_foresaw_is_a_problem_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.jobs.JobStore.list", lambda *_, **__: 1 / 0)
    problem = check_problem(client.get("/v1/jobs"), 500)
    assert "ZeroDivisionError" in problem["detail"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["name", "model", "data", "target_length", "objective", "space", "strategy", "budget", "seed"])
inner_keys = st.sampled_from(["id", "revision", "files", "dataset", "kind", "candidates", "seconds", "initial_tokens"])
parts = values | st.dictionaries(inner_keys, values, max_size=3)
documents = st.dictionaries(keys, parts, max_size=9).map(lambda changes: SPEC | changes) | values


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=documents)
def test_any_json_is_a_job_or_a_problem(client: TestClient, document: Any) -> None:
    response = client.post("/v1/jobs", content=json.dumps(document).encode(), headers=JSON)
    if response.status_code == 201:
        assert client.get(response.headers["location"]).json() == response.json()
    else:
        assert 400 <= check_problem(response)["status"] < 500


@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_problem(client: TestClient, body: bytes) -> None:
    assert 400 <= check_problem(client.post("/v1/jobs", content=body, headers=JSON))["status"] < 500


@pytest.mark.parametrize("size", [2 * 2**20, 20 * 2**20])
def test_whoever_sends_too_much_over_a_socket_sees_why(size: int, tmp_path: Path) -> None:
    with serving(app_on(tmp_path)) as url:
        response = httpx.post(f"{url}/v1/jobs", content=b"x" * size, headers=JSON)  # reads on if it cannot write on
        assert (response.status_code, response.json()["status"]) == (413, 413)
        assert response.headers["connection"] == "close"


def test_a_connection_closed_within_the_body_harms_nobody(tmp_path: Path) -> None:
    with serving(app_on(tmp_path)) as url:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(3):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(
                    b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 1000\r\n\r\n{"
                )
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()


def test_what_cannot_be_is_refused_before_it_is_queued(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    fine = {"model": str(checkpoint), "data": [str(texts / "*.txt")], "target_length": 128}
    anything = Policy((Path("/"),), allow_hub=True, allow_remote_code=False)
    with calling(app_on(tmp_path, policy=anything)) as client:
        for change, detail in (
            ({"target_length": 32}, "the target must be larger"),
            ({"data": [str(tmp_path / "nothing.txt")]}, "no file matches"),
            ({"space": {"initial_tokens": [4096]}}, "beyond the original length"),
        ):
            assert detail in check_problem(client.post("/v1/jobs", json=fine | change), 422)["detail"]
        assert client.get("/v1/jobs").json()["jobs"] == []
        assert client.post("/v1/jobs", json=fine).status_code == 201
