"""A stop ends all that a command started, in the time that is promised, whatever hangs and however it is stopped."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from api.cli.private_server import DemoError, last_lines
from api.cli.private_server import server as private_server
from api.client import Client
from api.server import STOP_SECONDS
from factor_search.errors import FactorSearchError
from tests.processes import survivors, wait_for
from workers.ray_environment import LONGEST_FOLDER_BYTES, ClusterError, prepare_environment

ROOT = Path(__file__).parents[1]
LEEWAY_SECONDS = 15.0
"""For machines on which other tests run."""


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", **changes}


@contextmanager
def started(folder: Path, *arguments: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "api", *arguments]
    with (folder / "err").open("w") as err:
        values: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": err, "text": True, "cwd": folder}
        process = subprocess.Popen(command, **values | {"env": environment()} | options)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_demo_ends_all_that_it_started(number: int, tmp_path: Path) -> None:
    arguments = ["demo", "--out", str(tmp_path / "demo"), "--candidates", "60"]
    with started(tmp_path, *arguments, start_new_session=True) as process:
        wait_for(lambda: "submitted as" in (tmp_path / "err").read_text(), 300)
        wait_for(lambda: any("raylet" in child.name() for child in family(process)), 30)
        relatives = family(process)
        begun = time.monotonic()
        process.send_signal(number)
        process.wait(60)
        left = survivors(relatives, 30)
        assert [child.cmdline() for child in left] == []
        assert time.monotonic() - begun < 20 + LEEWAY_SECONDS
        assert process.returncode == (130 if number != signal.SIGKILL else -number)


@pytest.mark.parametrize("hangs", ["an evaluation", "a worker that is stopped", "a coordinator that is stopped"])
def test_serve_with_work_stops_in_time(hangs: str, tmp_path: Path) -> None:
    from api.cli.demo import specification

    with started(tmp_path, "serve", "--port", "0", "--workers", "1") as process:
        assert process.stdout is not None
        found = re.match(r"serving at (\S+)", process.stdout.readline())
        assert found is not None
        document = specification(10) | {"target_length": 16_384}
        document["data"]["search_documents"] = 1  # type: ignore[index]
        with Client(found[1]) as client:
            job = client.jobs.submit(document)
            wait_for(lambda: client.jobs.get(job.id).state == "running", 120)
            wait_for(lambda: workers_of(process), 60)
        relatives = family(process)
        coordinators = [one for one in relatives if "-m workers" in " ".join(one.cmdline())]
        assert len(coordinators) == 1
        for one in workers_of(process) if hangs == "a worker that is stopped" else ():
            one.suspend()
        if hangs == "a coordinator that is stopped":
            coordinators[0].suspend()
        begun = time.monotonic()
        process.terminate()
        process.wait(60)
        took = time.monotonic() - begun
        assert took < STOP_SECONDS + LEEWAY_SECONDS
        assert [child.cmdline() for child in survivors(relatives, 10)] == []


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [one for one in family(process) if "RayModelWorker" in " ".join(one.cmdline())]


def test_serve_stops_in_time_though_a_request_waits_for_the_database(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--port", "0", "--no-coordinator", "--no-dashboard") as process:
        assert process.stdout is not None
        found = re.match(r"serving at (\S+)", process.stdout.readline())
        assert found is not None
        with sqlite3.connect(tmp_path / "factor-search.db", isolation_level=None) as locked:
            locked.execute("BEGIN IMMEDIATE")
            url = f"{found[1]}/v1/jobs/{'0' * 24}/pause"
            threading.Thread(target=lambda: _ignoring(lambda: httpx.post(url, timeout=60)), daemon=True).start()
            time.sleep(1)
            begun = time.monotonic()
            process.terminate()
            process.wait(60)
            assert time.monotonic() - begun < STOP_SECONDS + LEEWAY_SECONDS


def _ignoring(call: Any) -> None:
    with suppress(httpx.HTTPError):
        call()


def test_serve_stops_with_the_program_that_started_it(tmp_path: Path) -> None:
    arguments = ["serve", "--port", "0", "--no-coordinator", "--no-dashboard", "--stop-at-end-of-input"]
    with started(tmp_path, *arguments, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().startswith("serving at")
        process.stdin.close()
        assert process.wait(STOP_SECONDS) == 0


def test_serve_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with started(tmp_path, "serve", "--port", "0", "--no-coordinator", "--no-dashboard", preexec_fn=nohup) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving at")
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0


# Why a coordinator does not come up.


def test_demo_shows_why_its_coordinator_does_not_come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/no/such/folder/that/can/hold/the/sockets/of/ray")
    monkeypatch.setenv("PYTHONPATH", str(broken_ray(tmp_path)) + os.pathsep + str(ROOT))
    with pytest.raises(DemoError) as refused, private_server(tmp_path):
        pass
    said = str(refused.value).splitlines()
    assert said[0] == f"the coordinator did not come up; the end of {tmp_path / 'server.log'}:"
    assert any("cannot start Ray on this machine: no sockets here" in line for line in said)
    assert all(line.startswith("    ") for line in said[1:])


def broken_ray(folder: Path) -> Path:
    """A folder whose sitecustomize lets Ray fail."""
    place = folder / "broken"
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'workers' in sys.orig_argv or '-c' in sys.orig_argv:\n"
        "    import ray\n"
        "    def init(*arguments, **options):\n"
        "        raise OSError('no sockets here')\n"
        "    ray.init = init\n"
    )
    return place


def test_doctor_shows_why_no_coordinator_comes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.cli.doctor import _ray

    monkeypatch.setenv("PYTHONPATH", str(broken_ray(tmp_path)) + os.pathsep + str(ROOT))
    with pytest.raises(FactorSearchError) as refused:
        _ray(None)
    first, *block = str(refused.value).splitlines()
    assert first == "no private instance starts, so no coordinator comes up:"
    assert block == ["    cannot start Ray on this machine: no sockets here"]


def test_a_log_never_controls_a_terminal() -> None:
    assert last_lines("a\n\x1b[2Jb\n") == "    a\n    [2Jb"
    assert last_lines("") == "    (it is empty)"


# Folders whose names are too long for sockets.


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_folder_for_temporary_files_does_not_stop_ray(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("ä" * 20) / "job.1234567.head.cluster.example.org"
    long.mkdir(parents=True)
    monkeypatch.setenv(variable, str(long))
    monkeypatch.setenv("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", ""))
    monkeypatch.setattr("tempfile.tempdir", None)
    prepare_environment(None)
    chosen = os.environ["RAY_TMPDIR"]
    assert len(os.fsencode(chosen)) <= LONGEST_FOLDER_BYTES
    assert os.access(chosen, os.W_OK)
    monkeypatch.setattr("workers.ray_environment.SHORT_FOLDERS", ())
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(ClusterError, match="set RAY_TMPDIR to a folder"):
        prepare_environment(None)
