"""The Python client against a real server."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from api.app import CHECK_SECONDS, WRITE_SECONDS, create_app
from api.client import (
    Client,
    ConflictError,
    NotFoundError,
    ServiceError,
    UnauthorisedError,
    UnreachableError,
)
from api.event_stream import read_stream
from bench.ports import free_port
from factor_search.spec import parse_spec
from storage.keys import KeyStore
from tests.conftest import COMMIT
from tests.rest_service import PLAN, SPEC, FakeCoordinator, app_on, serving, settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FACTOR_SEARCH_URL", "FACTOR_SEARCH_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(app_on(tmp_path)) as url, Client(url) as client:
        yield client


@pytest.fixture
def coordinator(tmp_path: Path, client: Client) -> Iterator[FakeCoordinator]:
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        yield coordinator


def test_a_client_waits_longer_for_a_change_than_the_server_may_take(client: Client) -> None:
    waited: dict[str, float] = {}
    client._connection._http.event_hooks["request"] = [
        lambda request: waited.update({request.method: request.extensions["timeout"]["read"]})
    ]
    job = client.jobs.submit(parse_spec(SPEC))
    client.jobs.cancel(job.id)
    client.jobs.delete(job.id)
    assert waited.keys() == {"POST", "DELETE"}
    assert min(waited.values()) > CHECK_SECONDS + WRITE_SECONDS


def test_a_job_from_submission_to_factors(client: Client, coordinator: FakeCoordinator) -> None:
    asked = parse_spec(SPEC)
    job = client.jobs.submit(asked)
    commit, data = {"revision": COMMIT}, asked.data.model_copy(update={"revision": COMMIT})
    spec = asked.model_copy(update={"model": asked.model.model_copy(update=commit), "data": data})
    assert (job.state, parse_spec(job.spec), job.ended) == ("queued", spec, False)
    assert client.jobs.pause(job.id).state == "paused"
    assert client.jobs.resume(job.id).state == "queued"
    lease = coordinator.claim()
    coordinator.generation(lease, 0)
    running = client.jobs.get(job.id)
    assert running.progress is not None
    assert running.progress.candidates == 4
    with pytest.raises(ConflictError, match="is running"):
        client.jobs.factors(job.id)
    coordinator.finish(lease)
    assert client.jobs.wait(job.id).state == "finished"
    assert client.jobs.factors(job.id) == {"a": 1}
    assert client.jobs.report(job.id) == {"b": 2}
    assert [item.outcome for item in client.jobs.evaluations(job.id)] == ["ok", "ok", "pruned", "diverged"]
    assert list(client.jobs.evaluations(job.id, part="held_out")) == []
    with pytest.raises(ConflictError, match="finished"):
        client.jobs.cancel(job.id)
    assert client.health().status == "ok"


def test_values_are_frozen(client: Client) -> None:
    job = client.jobs.submit(SPEC)
    with pytest.raises(ValueError, match="frozen"):
        job.state = "finished"  # type: ignore[misc]


def test_listing_goes_over_pages(client: Client, coordinator: FakeCoordinator) -> None:
    jobs = [coordinator.jobs.submit(parse_spec(SPEC))[0] for _ in range(105)]
    ids = [job.id for job in sorted(jobs, key=lambda job: (job.submitted_at, job.id), reverse=True)]
    assert [job.id for job in client.jobs.list()] == ids
    assert [job.id for job in client.jobs.list(limit=102)] == ids[:102]
    assert list(client.jobs.list(state="failed")) == []


def test_a_job_is_found_by_the_beginning_of_its_id(client: Client) -> None:
    first, second = client.jobs.submit(SPEC), client.jobs.submit(SPEC)
    assert client.jobs.find(first.id) == client.jobs.find(first.id[:20]) == client.jobs.get(first.id)
    with pytest.raises(NotFoundError, match="2 jobs begin"):
        client.jobs.find(second.id[:5])
    for wrong in ("zzz", "f" * 24, "../../etc", "", "x/y"):
        with pytest.raises(ServiceError):
            client.jobs.find(wrong)


def test_an_id_says_whether_it_is_of_a_job_or_a_plan(client: Client) -> None:
    job = client.jobs.submit(SPEC)
    plan = client.plans.submit(PLAN)
    assert client.of(job.id) is client.jobs
    assert client.of(plan.id) is client.plans
    assert client.of(plan.id[:4]).find(plan.id[:20]).id == plan.id
    for resource, ended in ((client.jobs, client.jobs.cancel(job.id)), (client.plans, client.plans.cancel(plan.id))):
        assert resource.wait(ended.id).state == "cancelled"
        assert [known.id for known in resource.list(state="cancelled")] == [ended.id]


def test_refusals_say_what_the_server_says(client: Client) -> None:
    with pytest.raises(NotFoundError, match="no job"):
        client.jobs.get("0" * 24)
    with pytest.raises(ServiceError, match="target_length") as raised:
        client.jobs.submit(SPEC | {"target_length": 0})
    assert raised.value.status == 422
    client.jobs.submit(SPEC, idempotency_key="k")
    with pytest.raises(ConflictError, match="idempotency key"):
        client.jobs.submit(SPEC | {"seed": 1}, idempotency_key="k")


def test_the_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(settings(tmp_path, loopback=False))
    with serving(app) as url:
        secret = KeyStore(app.state.database).create("k", ["read"])[1]
        with Client(url) as client, pytest.raises(UnauthorisedError, match="keys create"):
            list(client.jobs.list())
        with Client(url, secret) as client:
            assert list(client.jobs.list()) == []
            with pytest.raises(UnauthorisedError, match="submit"):
                client.jobs.submit(SPEC)
        monkeypatch.setenv("FACTOR_SEARCH_KEY", secret)
        monkeypatch.setenv("FACTOR_SEARCH_URL", url + "/")
        with Client() as client:
            assert list(client.jobs.list()) == []


def test_no_server_is_one_line_that_says_what_to_do() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        for action in (client.health, lambda: client.jobs.submit(SPEC), lambda: next(client.jobs.events("0" * 24))):
            started = time.monotonic()
            with pytest.raises(UnreachableError, match="factor-search serve") as raised:
                action()
            assert "\n" not in str(raised.value)
            assert time.monotonic() - started < 5


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://[", "http://x:port", "127.0.0.1:8400"])
def test_what_is_not_a_url(url: str) -> None:
    with pytest.raises(ServiceError, match=r"not (a|the) URL"):
        Client(url)


def test_a_key_that_is_none() -> None:
    with pytest.raises(ServiceError, match="key"):
        Client(key="a\nb")


def test_a_server_that_is_another_program() -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if "health" in self.path else 404)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            with pytest.raises(ServiceError, match="is it a factor-search server"):
                list(client.jobs.list())
            with pytest.raises(ServiceError, match="not a Health"):
                client.health()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_events_continue_over_a_restart_of_the_server(tmp_path: Path) -> None:
    port = free_port()
    received: list[int] = []
    interruptions: list[UnreachableError] = []
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        with serving(app_on(tmp_path), port) as url:
            client = Client(url)
            job = client.jobs.submit(SPEC)
            lease = coordinator.claim()

            def follow() -> None:
                for event in client.jobs.events(job.id, on_interruption=interruptions.append):
                    received.append(event.number)

            reader = threading.Thread(target=follow)
            reader.start()
            coordinator.generation(lease, 0)
            time.sleep(0.5)
        coordinator.generation(lease, 1)
        time.sleep(1.5)
        with serving(app_on(tmp_path), port):
            coordinator.generation(lease, 2)
            time.sleep(0.5)
            coordinator.finish(lease)
            reader.join(20)
            assert not reader.is_alive()
        client.close()
    assert received == [1, 2, 3, 4, 5, 6]
    assert interruptions


def test_a_server_that_stays_away_is_an_error_in_the_end(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    with serving(app_on(tmp_path)) as url:
        client = Client(url, retry_seconds=0.5)
        job = client.jobs.submit(SPEC)

        def follow() -> None:
            try:
                client.jobs.wait(job.id)
            except UnreachableError as error:
                failures.append(error)

        reader = threading.Thread(target=follow)
        reader.start()
        time.sleep(0.5)
    reader.join(20)
    client.close()
    assert "no server answers" in str(failures[0])


def test_events_after_the_end(client: Client) -> None:
    job = client.jobs.submit(SPEC)
    client.jobs.cancel(job.id)
    assert [event.kind for event in client.jobs.events(job.id)] == ["submitted", "cancelled"]
    assert [event.kind for event in client.jobs.events(job.id, after=1)] == ["cancelled"]
    assert list(client.jobs.events(job.id, after=2)) == []


def test_a_submission_whose_answer_is_lost_makes_one_job(tmp_path: Path) -> None:
    """A proxy that takes the first request to the server and drops the answer."""
    with serving(app_on(tmp_path)) as url, socket.create_server(("127.0.0.1", 0)) as listener:
        target = ("127.0.0.1", int(url.rpartition(":")[2]))

        def proxy() -> None:
            for number in range(2):
                incoming, _ = listener.accept()
                with incoming, socket.create_connection(target) as outgoing:
                    request = b""
                    while b'"target_length"' not in request:
                        request += incoming.recv(65536)
                    outgoing.sendall(request)
                    outgoing.settimeout(0.5)
                    answer = b""
                    with contextlib.suppress(TimeoutError):
                        while True:
                            answer += outgoing.recv(65536)
                    assert answer.startswith(b"HTTP/1.1 201" if number == 0 else b"HTTP/1.1 200")
                    if number:
                        incoming.sendall(answer)

        thread = threading.Thread(target=proxy)
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            job = client.jobs.submit(SPEC)
        thread.join(10)
        with Client(url) as client:
            assert [known.id for known in client.jobs.list()] == [job.id]


def test_an_event_that_was_cut_off_is_not_told() -> None:
    whole = ["retry: 1", "", ": keepalive", "", "id: 1", "event: x", 'data: {"a":', "data: 1}", "", "id: 2", "data: {"]
    assert list(read_stream(whole)) == ['{"a":\n1}']


def test_the_client_needs_neither_torch_nor_a_database() -> None:
    code = """
import sys, json, api.client
print(json.dumps([name for name in ("torch", "sqlalchemy", "ray", "fastapi") if name in sys.modules]))
"""
    loaded: Any = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert loaded == []
