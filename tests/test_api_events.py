"""Event streams of a real server: exact resumption, an end of their own, and an end with the server."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from api.app import create_app
from storage.errors import DatabaseError
from tests.rest_service import SPEC, FakeCoordinator, app_on, serving, settings


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with serving(app_on(tmp_path, keepalive_seconds=0.2)) as url:
        yield url


@pytest.fixture
def coordinator(tmp_path: Path, url: str) -> Iterator[FakeCoordinator]:
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        yield coordinator


def submit(url: str) -> str:
    job_id: str = httpx.post(f"{url}/v1/jobs", json=SPEC).raise_for_status().json()["id"]
    return job_id


def parse(text: str) -> list[dict[str, Any]]:
    """Events of a stream, read as the standard says."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            data = json.loads(fields["data"])
            assert (fields["id"], fields["event"]) == (str(data["number"]), data["kind"])
            events.append(data)
    return events


def read(url: str, job: str, after: int | None = None, most: int | None = None) -> list[dict[str, Any]]:
    """Events of one connection, which is broken off after so many."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    text = ""
    with httpx.stream("GET", f"{url}/v1/jobs/{job}/events", headers=headers, timeout=30) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for chunk in response.iter_text():
            text += chunk
            if most is not None and text.count("\n\nid: ") >= most:
                break
    return parse(text)[:most]


def test_a_stream_tells_everything_and_ends_with_the_job(url: str, coordinator: FakeCoordinator) -> None:
    job = submit(url)
    received: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: received.extend(read(url, job)))
    reader.start()
    lease = coordinator.claim()
    for number in range(3):
        coordinator.generation(lease, number)
        time.sleep(0.05)
    coordinator.event(lease, "worker_lost", worker="host:1", reason="it said\n\ndata: nothing\r\u2028 ü")
    coordinator.finish(lease)
    reader.join(20)
    assert not reader.is_alive()
    assert [event["number"] for event in received] == list(range(1, 8))
    assert [event["kind"] for event in received] == [
        *("submitted", "claimed", "progress", "progress", "progress", "worker_lost", "finished"),
    ]
    assert received[5]["data"]["reason"] == "it said\n\ndata: nothing\r\u2028 ü"
    assert received[0]["at"].endswith("Z")


def test_readers_that_break_off_anywhere_miss_and_repeat_nothing(url: str, coordinator: FakeCoordinator) -> None:
    job = submit(url)
    lease = coordinator.claim()
    stop = threading.Event()

    def write() -> None:
        for number in range(60):
            coordinator.event(lease, "note", number=number)
            if stop.wait(0.005):
                break
        coordinator.finish(lease)

    writer = threading.Thread(target=write)
    writer.start()
    received: list[int] = []
    try:
        for most in (1, 2, 3, 1, 5, 8, 1, 13):
            received += [event["number"] for event in read(url, job, received[-1] if received else None, most)]
        received += [event["number"] for event in read(url, job, received[-1])]
    finally:
        stop.set()
        writer.join()
    assert received == list(range(1, 64))


def test_after_the_last_event_of_an_ended_job_there_is_no_content(url: str, coordinator: FakeCoordinator) -> None:
    job = submit(url)
    httpx.post(f"{url}/v1/jobs/{job}/cancel")
    assert [event["kind"] for event in read(url, job)] == ["submitted", "cancelled"]
    assert [event["number"] for event in read(url, job, 1)] == [2]
    assert httpx.get(f"{url}/v1/jobs/{job}/events", headers={"Last-Event-ID": "2"}).status_code == 204
    assert httpx.get(f"{url}/v1/jobs/{job}/events?after=2").status_code == 204
    assert (
        parse(httpx.get(f"{url}/v1/jobs/{job}/events?after=2", headers={"Last-Event-ID": "0"}).text)[0]["number"] == 1
    )


def test_a_silent_stream_is_kept_alive(url: str) -> None:
    job = submit(url)
    text = ""
    with httpx.stream("GET", f"{url}/v1/jobs/{job}/events", timeout=30) as response:
        for chunk in response.iter_text():
            text += chunk
            if text.count(": keepalive\n\n") >= 2:
                break
    assert text.startswith("retry: ")
    assert len(parse(text)) == 1


def test_a_stream_outlives_an_absence_of_the_database(
    url: str, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api import events

    job, failures, real = submit(url), [], events.count_events

    def sometimes(*arguments: Any) -> Any:
        if 3 < len(failures) < 8:
            failures.append(1)
            raise DatabaseError("gone")
        failures.append(0)
        return real(*arguments)

    monkeypatch.setattr(events, "count_events", sometimes)
    timer = threading.Timer(0.8, lambda: coordinator.jobs.cancel(job))
    timer.start()
    assert [event["kind"] for event in read(url, job)] == ["submitted", "cancelled"]
    assert sum(failures) == 4
    timer.join()


def test_a_stream_outlives_an_internal_error_which_is_logged(
    url: str, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from api import events

    job, looks, real = submit(url), [], events.count_events

    def sometimes(*arguments: Any) -> Any:
        looks.append(1)
        if 3 < len(looks) < 8:
            raise KeyError("nobody foresaw this")
        return real(*arguments)

    monkeypatch.setattr(events, "count_events", sometimes)
    timer = threading.Timer(0.8, lambda: coordinator.jobs.cancel(job))
    timer.start()
    assert [event["kind"] for event in read(url, job)] == ["submitted", "cancelled"]
    assert [record.message for record in caplog.records if "nobody foresaw this" in str(record.exc_info)] == [
        "internal error while events are looked for, which is tried again and again"
    ], "once for all looks that fail one after the other"
    timer.join()


def test_many_watchers_do_not_keep_others_waiting(url: str, coordinator: FakeCoordinator) -> None:
    job = submit(url)
    received: list[int] = []
    readers = [threading.Thread(target=lambda: received.append(len(read(url, job)))) for _ in range(60)]
    for reader in readers:
        reader.start()
    time.sleep(1)
    started = time.monotonic()
    for _ in range(10):
        assert httpx.get(f"{url}/v1/jobs/{job}").status_code == 200
    assert time.monotonic() - started < 8
    coordinator.jobs.cancel(job)
    for reader in readers:
        reader.join(30)
    assert received == [2] * 60


def test_a_server_that_stops_ends_its_streams(tmp_path: Path) -> None:
    received: list[int] = []
    with serving(create_app(settings(tmp_path))) as url:
        job = submit(url)
        reader = threading.Thread(target=lambda: received.append(len(read(url, job))))
        reader.start()
        time.sleep(0.5)
        started = time.monotonic()
    assert time.monotonic() - started < 3
    reader.join(10)
    assert received == [1]
