"""Health and readiness are answered at once, whatever else happens, and tell the truth about the database."""

import asyncio
import http.client
import json
import os
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2 as httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.responses import Response
from starlette.testclient import TestClient

from api.app import create_app
from api.connections import LimitedProtocol
from api.health import HealthWatch
from api.problems import RefusedError
from api.routes.resource import LARGEST_PAGE_BYTES
from api.slow_work import SlowWork
from api.submission import submitted_spec
from factor_search.spec import parse_spec
from storage import health
from storage.database import Database
from storage.errors import DatabaseError
from storage.evaluations import Batch
from storage.health import Condition, Probe
from storage.jobs import JobStore
from storage.keys import KeyStore
from tests.processes import wait_for
from tests.records import candidate, computed
from tests.rest_service import SPEC, FakeCoordinator, app_on, calling, serving, settings

MOST_SECONDS = 5.0
"""That an answer about health may take, on a machine that does much else; ``python -m bench.health`` is strict."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LEAST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(health, "CHECK_SHARE", 1.0)
    monkeypatch.setattr(health, "LOCKED_SECONDS", 0.3)
    monkeypatch.setattr(health, "DAMAGE_SECONDS", 0.3)


def check_health(url: str, *, ready: bool | None = None) -> None:
    for path in ("/healthz", "/readyz"):
        started = time.monotonic()
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        assert time.monotonic() - started < MOST_SECONDS, path
        if path == "/healthz":
            assert status == 200
        elif ready is not None:
            assert (status == 200) == ready


def client_of(url: str) -> httpx.Client:
    """For many threads."""
    return httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None))


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def is_closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_nobody_waits_for_a_locked_database(tmp_path: Path) -> None:
    with serving(app_on(tmp_path)) as url, client_of(url) as client, ThreadPoolExecutor(40) as threads:
        check_health(url, ready=True)
        holder = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        try:
            asked = [threads.submit(client.post, "/v1/jobs", json=SPEC) for _ in range(30)]
            for _ in range(6):
                check_health(url)
                started = time.monotonic()
                assert client.get("/v1/jobs", timeout=10).status_code == 200
                assert time.monotonic() - started < MOST_SECONDS, "who reads waits for no writer"
                time.sleep(0.1)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert "locked" in client.get("/readyz").json()["detail"]
            started = time.monotonic()
            refused = client.post("/v1/jobs", json=SPEC)
            assert (refused.status_code, time.monotonic() - started < MOST_SECONDS) == (503, True)
            assert int(refused.headers["retry-after"]) > 0
        finally:
            holder.execute("ROLLBACK")
            holder.close()
        assert {one.result().status_code for one in asked} <= {201, 503}
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/jobs", json=SPEC).status_code == 201


def delete(file: Path) -> None:
    file.rename(file.with_suffix(".away"))


def replace(file: Path) -> None:
    copy = file.with_suffix(".copy")
    copy.write_bytes(file.read_bytes())
    copy.replace(file)


def delete_journal(file: Path) -> None:
    Path(f"{file}-wal").unlink()


def overwrite(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    damage = random.Random(5)
    with file.open("r+b") as stream:
        for page in range(1, file.stat().st_size // 4096):
            stream.seek(page * 4096 + damage.randrange(8))
            stream.write(damage.randbytes(64))


def drop_a_table(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE candidates")
    connection.close()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (delete, "deleted or replaced"),
        (replace, "deleted or replaced"),
        (delete_journal, "write-ahead log"),
        (overwrite, "malformed"),
        (drop_a_table, "does not answer as expected"),
    ],
)
def test_a_database_that_is_harmed_accepts_nothing(harm: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with calling(create_app(settings(tmp_path))) as client:
        accepted = client.post("/v1/jobs", json=SPEC)
        assert accepted.status_code == 201
        harm(file)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        refused = client.get("/readyz").json()
        assert reason in refused["detail"]
        assert str(tmp_path) not in refused["detail"], "anybody may ask"
        for path in ("/v1/jobs", "/v1/plans", f"/v1/jobs/{accepted.json()['id']}/pause"):
            response = client.post(path, json=SPEC)
            assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
            assert reason in response.json()["detail"]
        assert client.get("/healthz").status_code == 200


def test_a_file_that_goes_during_a_look_is_told_as_one_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    gone = mock.patch.object(health, "_check_room", side_effect=lambda folder: delete(file))  # before a check opens it
    with Database(f"sqlite:///{file}") as database, closing(Probe(database, 10.0)) as probe, gone:
        condition = probe.look()
    assert "deleted or replaced" in str(condition.fault)


def test_a_journal_that_goes_during_a_look_is_told_as_one_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with Database(f"sqlite:///{file}") as database, closing(Probe(database, 10.0)) as probe:
        assert probe.look().fault is None

        def lose(self: Probe) -> None:  # SQLite meets this between the log's last look and its own use of it
            delete_journal(file)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHORT_READ
            raise DatabaseError("disk I/O error") from error

        with mock.patch.object(Probe, "_check_writing", lose):
            assert "write-ahead log" in str(probe.look().fault)


def test_a_file_that_is_put_back_is_used_again(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with calling(create_app(settings(tmp_path))) as client:
        delete(file)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        assert not file.exists(), "no empty one is made in its place"
        file.with_suffix(".away").rename(file)
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/jobs", json=SPEC).status_code == 201


def test_nothing_is_written_to_a_deleted_file_even_between_two_looks(tmp_path: Path) -> None:
    """A coordinator does not look for health, but is not to record what nobody will find."""
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        store = JobStore(database)
        store.submit(parse_spec(SPEC))
        delete(tmp_path / "jobs.db")
        for use in (lambda: store.submit(parse_spec(SPEC)), lambda: store.claim("x", 10), store.list):
            with pytest.raises(DatabaseError, match="was deleted while it was open"):
                use()
        with pytest.raises(DatabaseError, match="was deleted"), database.writing():
            raise AssertionError("not reached")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        probe = Probe(database, 30)
        assert probe.look().fault is None
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, before[1]))  # as if no file could grow beyond
        try:
            assert probe.look().fault == "the disk of the database is full"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert probe.look().fault is None

        def read_only(*arguments: object, **options: object) -> None:
            raise OSError(30, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryFile", read_only)
            assert probe.look().fault == "the folder of the database is read-only"
        probe.close()


def test_a_read_only_file(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        probe = Probe(database, 30)
        with probe._own.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only=1")  # even root may write to a file without write permission
        assert probe.look().fault == "the database is read-only"
        probe.close()


def test_what_requests_meet_counts_for_a_while(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        probe = Probe(database, 30)
        for code, fault in ((sqlite3.SQLITE_CORRUPT, "malformed"), (sqlite3.SQLITE_NOTADB, "malformed")):
            error = sqlite3.DatabaseError("damaged")
            error.sqlite_errorcode = code
            with pytest.raises(DatabaseError, match="damaged"), database.reading():
                raise error
            assert fault in str(probe.look().fault)
            wait_for(lambda: probe.look().fault is None)
        probe.close()


def test_postgresql_that_is_read_only_or_gone(postgresql_database: str) -> None:
    with Database(postgresql_database) as database:
        probe = Probe(database, 30)
        assert probe.look().fault is None
        name = postgresql_database.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(postgresql_database, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            probe._own.engine.dispose()
            assert probe.look().fault == "the database is read-only"
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            probe._own.engine.dispose()
            assert probe.look().fault is None
            connection.execute("DROP TABLE candidates CASCADE")
            assert probe.look().fault == "the database does not answer as expected"
        probe.close()
    gone = Database("postgresql://nobody@127.0.0.1:1/none", migrate=False)
    probe = Probe(gone, 30)
    assert probe.look().fault == "the database cannot be reached"
    probe.close()
    gone.close()


def test_a_look_that_does_not_end_is_no_readiness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    try:
        with calling(create_app(settings(tmp_path, oldest_look_seconds=0.5))) as client:
            assert client.get("/readyz").status_code == 200
            monkeypatch.setattr(Probe, "look", lambda probe: hangs.wait(20) and Condition(None, "", 0))
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert "has not answered for" in client.get("/readyz").json()["detail"]
            assert client.post("/v1/jobs", json=SPEC).status_code == 503
            hangs.set()
    finally:
        hangs.set()


def test_health_waits_for_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads of reads, of checks and of writes are taken by work that does not end."""
    release = threading.Event()
    monkeypatch.setattr("storage.jobs.JobStore.list", lambda *_, **__: release.wait(200) and [])
    monkeypatch.setattr("workers.policy.Policy.check", lambda *_: release.wait(200))
    with serving(app_on(tmp_path)) as url, client_of(url) as client, ThreadPoolExecutor(200) as threads:
        lists = [threads.submit(client.get, "/v1/jobs") for _ in range(60)]
        posts = [threads.submit(client.post, "/v1/jobs", json=SPEC) for _ in range(100)]
        wait_for(lambda: sum(one.done() for one in posts) == 36, 100)
        for _ in range(10):
            check_health(url, ready=True)
        release.set()
        assert {one.result().status_code for one in lists} == {200}
        statuses = [one.result().status_code for one in posts]
        assert set(statuses) == {201, 429}
        assert statuses.count(201) == 64, "4 run and 60 wait; more are told to come back"


def test_checks_that_take_too_long_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("api.app.CHECK_SECONDS", 0.3)
    monkeypatch.setattr("workers.policy.Policy.check", lambda *_: release.wait(200))
    with calling(app_on(tmp_path)) as client:
        response = client.post("/v1/jobs", json=SPEC)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        release.set()
        time.sleep(0.1)
        assert client.get("/v1/jobs").json()["jobs"] == [], "what was refused is not stored afterwards"


def test_a_body_of_many_keys_is_read_in_no_time() -> None:
    keys = ",".join(f'"k{number}":1' for number in range(20_000))
    started = time.process_time()
    for wrong, message in ((f'{keys},"k19999":1', "more than 1,000 keys"), ('"k":1,"k":2', "given twice")):
        with pytest.raises(RefusedError, match=message):
            submitted_spec(f"{{{wrong}}}".encode())
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /healthz",  # after an answer
    ],
)
def test_heads_that_do_not_end(sent: bytes, tmp_path: Path) -> None:
    with serving(app_on(tmp_path, head_seconds=0.5)) as url, connect(url) as connection:
        connection.sendall(sent)
        started = time.monotonic()

        def drip() -> None:
            while time.monotonic() - started < 12:
                time.sleep(0.1)
                try:
                    connection.sendall(b"x" if sent else b"")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert is_closed_within(connection, 10)
        assert time.monotonic() - started < 10
        connection.close()
        dripping.join()


READ_BODIES = ("/v1/jobs", "/v1/storage/prune", "/v1/jobs/x/keep", "/v1/plans/x/retry", "/v1/plans/x/checkpoint")


@pytest.mark.parametrize(
    "path", [*READ_BODIES, "/v1/plans", "/v1/jobs/x/pause", "/dashboard/x", "/nothing", "/healthz"]
)
@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_bodies_that_do_not_come(path: str, length: str, running: str) -> None:
    with connect(running) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
        connection.sendall(head.encode())
        started = time.monotonic()
        connection.settimeout(15)
        answer = connection.recv(65536)
        status = int(answer.split()[1])
        assert status == (408 if path in (*READ_BODIES, "/v1/plans") else status)
        assert status < 500
        assert b"connection: close" in answer.lower()
        assert is_closed_within(connection, 10)
        assert time.monotonic() - started < 15


@hypothesis_settings(max_examples=12, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "BREW"]),
    path=st.sampled_from(["/healthz", "/v1/jobs", "/v1/jobs/x", "/", "/docs", "/v1/jobs/x/events", "/metrics"]),
    announced=st.integers(1, 2**40),
    chunked=st.booleans(),
    part=st.integers(0, 200_000),
)
def test_any_request_cut_off_anywhere_ends(
    running: str, method: str, path: str, announced: int, chunked: bool, part: int
) -> None:
    """Whatever is announced and however much of it comes, the connection is closed soon, and health is answered."""
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {announced}"
    body = b"fffffff\r\n" + b"x" * part if chunked else b"x" * min(part, announced - 1)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
    with connect(running) as connection:
        try:
            connection.sendall(head.encode() + body)
        except ConnectionError:
            return
        assert is_closed_within(connection, 15)
    check_health(running)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    limits = {"head_seconds": 0.5, "body_seconds": 0.5, "stalled_seconds": 0.5}
    with serving(app_on(tmp_path_factory.mktemp("running"), **limits)) as url:
        yield url


def test_an_oversized_body_is_not_read_on(tmp_path: Path) -> None:
    with serving(app_on(tmp_path)) as url, connect(url) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\n\r\n"
        )
        sent, block = 0, b"x" * 2**16
        connection.settimeout(10)
        try:
            while sent < 10**9:
                sent += connection.send(block)
        except OSError:
            pass
        assert sent < 20 * 2**20, "what the buffers of the system hold"
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 "), "its sender can see why"


def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, real = threading.Event(), LimitedProtocol.pause_writing

    def pause_writing(protocol: LimitedProtocol) -> None:
        real(protocol)
        full.set()

    monkeypatch.setattr(LimitedProtocol, "pause_writing", pause_writing)
    with serving(app_on(tmp_path, stalled_seconds=0.3)) as url:
        length, asked = len(httpx.get(f"{url}/openapi.json").content), 400
        with connect(url) as connection:
            connection.settimeout(1)
            try:
                for _ in range(asked):
                    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            except OSError:
                pass
            assert full.wait(100)
            time.sleep(2)
            received = 0
            try:
                while part := connection.recv(2**20):
                    received += len(part)
            except ConnectionError:
                pass
            assert received < asked * length / 2
        check_health(url, ready=True)


def test_idle_connections_make_room(tmp_path: Path) -> None:
    with serving(app_on(tmp_path, most_connections=50)) as url:
        idle = [connect(url) for _ in range(200)]
        try:
            check_health(url, ready=True)
            closed = sum(is_closed_within(connection, 1) for connection in idle[:100])
            assert closed == 100
        finally:
            for connection in idle:
                connection.close()


def test_lists_leave_specifications_out_and_are_bounded(tmp_path: Path) -> None:
    one = {"source": "x" * 4000, "rescale_factors": [1.0 + i / 64 for i in range(64)], "scale": 4}
    large = SPEC | {"warm_start": {"factors": [one | {"source": f"{n}{'x' * 4000}"} for n in range(15)]}}
    with calling(app_on(tmp_path)) as client, FakeCoordinator(f"sqlite:///{tmp_path / 'jobs.db'}") as coordinator:
        for number in range(12):
            assert client.post("/v1/jobs", json=large | {"name": f"job {number}"}).status_code == 201
        page = client.get("/v1/jobs", params={"limit": 200})
        assert len(page.content) < 12 * 2000
        assert all("spec" not in job for job in page.json()["jobs"])
        id = page.json()["jobs"][0]["id"]
        assert client.get(f"/v1/jobs/{id}").json()["spec"]["warm_start"]["factors"][0]["source"][1:] == "x" * 4000
        for _ in range(12):
            coordinator.jobs.end(coordinator.claim(), "failed", error="e" * 200_000)
        page = client.get("/v1/jobs", params={"limit": 200})
        assert len(page.content) < 12 * 4000
        check_pages(client, id, coordinator)


def check_pages(client: TestClient, id: str, coordinator: FakeCoordinator) -> None:
    job = client.post("/v1/jobs", json=SPEC).json()["id"]
    lease = coordinator.claim()
    losses = tuple(1.0 + i / 7 for i in range(4000))
    items = [candidate(number) for number in range(20)]
    results = [computed(item, "ok", losses) for item in items]
    batch = Batch(started=items, computed=results, done=[(item, "ok", False) for item in items])
    assert coordinator.evaluations.record({lease: batch}).lost == []
    numbers: list[int] = []
    after: int | None = -1
    while after is not None:
        answer = client.get(f"/v1/jobs/{job}/evaluations", params={"limit": 1000, "after": after})
        assert len(answer.content) < LARGEST_PAGE_BYTES + 400_000
        numbers += [one["number"] for one in answer.json()["evaluations"]]
        after = answer.json()["next"]
    assert numbers == list(range(20))


def test_more_than_the_server_can_answer_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("storage.jobs.JobStore.list", lambda *_, **__: release.wait(200) and [])
    app = app_on(tmp_path, most_requests=20, most_streams=3)
    with serving(app) as url, client_of(url) as client, ThreadPoolExecutor(40) as threads:
        job = client.post("/v1/jobs", json=SPEC).json()["id"]
        asked = [threads.submit(client.get, "/v1/jobs") for _ in range(40)]
        wait_for(lambda: sum(one.done() for one in asked) == 20, 100)
        check_health(url, ready=True)
        release.set()
        statuses = [one.result().status_code for one in asked]
        assert (statuses.count(200), statuses.count(503)) == (20, 20)
        streams = [connect(url) for _ in range(5)]
        answers = []
        for stream in streams:
            stream.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            answers.append(int(stream.recv(65536).split()[1]))
        assert answers == [200, 200, 200, 503, 503]
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("who", ["nobody", "somebody"])
def test_who_is_refused_takes_no_place(who: str, tmp_path: Path) -> None:
    """Neither without a key, nor after an answer that came before the body did."""
    with serving(app_on(tmp_path, most_requests=3)) as url:
        with Database(settings(tmp_path).database_url) as database:
            key = {"Authorization": f"Bearer {KeyStore(database).create('k', ['submit'])[1]}"}
        head = "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n"  # of no Content-Type
        if who == "somebody":
            head += f"Authorization: {key['Authorization']}\r\n"
        others = [connect(url) for _ in range(12)]
        for other in others:
            other.sendall(f"{head}\r\n".encode())
            assert other.recv(65536).split()[1] == (b"401" if who == "nobody" else b"415")
        answers = [httpx.get(f"{url}/v1/jobs", headers=key).status_code for _ in range(4)]
        for other in others:
            other.close()
        assert answers == [200] * 4


def test_many_who_fetch_factors_and_reports_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while all threads of submission checks are taken."""
    release = threading.Event()
    with serving(app_on(tmp_path)) as url, client_of(url) as client, ThreadPoolExecutor(250) as threads:
        job = client.post("/v1/jobs", json=SPEC).json()["id"]
        with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
            coordinator.finish(coordinator.claim())
        monkeypatch.setattr("workers.policy.Policy.check", lambda *_: release.wait(200))
        posts = [threads.submit(client.post, "/v1/jobs", json=SPEC) for _ in range(80)]
        try:
            wait_for(lambda: any(one.done() for one in posts), 100)  # refused: no more may wait
            paths = [f"/v1/jobs/{job}/factors", f"/v1/jobs/{job}/report", "/v1/storage"]
            asked = [threads.submit(client.get, path) for path in paths for _ in range(50)]
            assert {one.result().status_code for one in asked} == {200}
        finally:
            release.set()


def test_a_thread_that_cannot_start_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> int:
        work = SlowWork("things", threads=1, queue=0, seconds=5)
        with monkeypatch.context() as patched:
            patched.setattr("threading.Thread.start", lambda thread: exec("raise RuntimeError('no more threads')"))
            for _ in range(3):
                with pytest.raises(RefusedError, match="no more threads"):
                    await work.run(int)
        return await work.run(lambda: 7)

    assert asyncio.run(run()) == 7


def test_a_client_that_reads_slowly_gets_all(tmp_path: Path) -> None:
    app, block = app_on(tmp_path, stalled_seconds=1.0), 2**20
    app.add_api_route("/v1/large", lambda: Response(b"x" * 40 * block))
    with serving(app) as url, connect(url) as connection:
        connection.sendall(b"GET /v1/large HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        received, started = 0, time.monotonic()
        while part := connection.recv(block, socket.MSG_WAITALL):
            received += len(part)
            time.sleep(0.06)
        assert time.monotonic() - started > 2
        assert received > 40 * block


def test_streams_of_one_job_share_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from api import events

    reads: list[Any] = []
    real = events.read_events
    monkeypatch.setattr(events, "read_events", lambda *arguments: reads.append(1) or real(*arguments))  # type: ignore[func-returns-value]
    with serving(app_on(tmp_path)) as url, FakeCoordinator(f"sqlite:///{tmp_path / 'jobs.db'}") as coordinator:
        job = httpx.post(f"{url}/v1/jobs", json=SPEC).json()["id"]
        lease = coordinator.claim()
        with client_of(url) as client, ThreadPoolExecutor(40) as threads:
            asked = [threads.submit(client.get, f"/v1/jobs/{job}/events") for _ in range(40)]
            wait_for(lambda: len(reads) >= 40, 60)  # each its past
            time.sleep(0.5)
            before = len(reads)
            for number in range(10):
                coordinator.event(lease, "phase", phase=f"phase {number}")
                time.sleep(0.1)
            coordinator.finish(lease)
            texts = [one.result().text for one in asked]
        assert len(reads) - before <= 15, "not one for each stream"
        kinds = ["submitted", "claimed", *["phase"] * 10, "finished"]
        for text in texts:
            data = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
            assert [event["kind"] for event in data] == kinds
            assert [event["number"] for event in data] == list(range(1, 14))


def test_the_watch_ends_with_the_server(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database, HealthWatch(database, settings(tmp_path)) as watch:
        assert watch.fault is None
        thread = watch._thread
    assert not thread.is_alive()
    assert os.listdir(tmp_path)
