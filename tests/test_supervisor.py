"""A child process that is restarted, and never outlives its parent."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import alive, wait_for
from workers.supervisor import Supervisor


def command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


SLEEPS = "import sys, time; open(sys.argv[1], 'a').write('x'); time.sleep(100)"
DIES = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(3)"
UNTIL_END_OF_INPUT = "import sys, os; open(sys.argv[1], 'w').write(str(os.getpid())); sys.stdin.read()"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(100)
"""


def test_a_child_that_is_killed_is_started_again_and_stopped_with_us(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with Supervisor(command(SLEEPS, marks), name="sleeper", first_delay_seconds=0.05) as supervisor:
        wait_for(lambda: marks.exists() and marks.read_text() == "x")
        first = supervisor.process_id
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: marks.read_text() == "xx")
        second = supervisor.process_id
        assert second not in (None, first)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert not alive(second or 0)
    assert supervisor.process_id is None
    time.sleep(0.2)
    assert marks.read_text() == "xx"


def test_the_delay_grows_with_each_early_exit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marks = tmp_path / "marks"
    with (
        caplog.at_level(logging.ERROR),
        Supervisor(command(DIES, marks), name="mayfly", first_delay_seconds=0.05, longest_delay_seconds=0.2),
    ):
        wait_for(lambda: len(caplog.records) >= 4)
    waits = [record.getMessage().rpartition("restarting it in ")[2] for record in caplog.records]
    assert waits[:4] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]
    assert "mayfly exited with status 3" in caplog.text


def test_a_child_that_ran_long_is_restarted_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marks = tmp_path / "marks"
    options = {"first_delay_seconds": 0.01, "longest_delay_seconds": 10.0, "settled_seconds": 0.0}
    with caplog.at_level(logging.ERROR), Supervisor(command(DIES, marks), name="m", **options):  # type: ignore[arg-type]
        wait_for(lambda: len(caplog.records) >= 4)
    assert {record.getMessage().rpartition("restarting it in ")[2] for record in caplog.records} == {"0.01 s"}


def test_a_child_that_does_not_listen_is_killed_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with Supervisor(command(STUBBORN, file), name="stubborn", stop_timeout_seconds=0.3) as supervisor:
        wait_for(lambda: file.exists() and file.read_text())
        process_id = supervisor.process_id
    assert not alive(process_id or 0)
    wait_for(lambda: not alive(int(file.read_text())))


def test_what_cannot_be_started_is_tried_again_and_can_be_stopped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), Supervisor(["/no/such/program"], name="nobody", first_delay_seconds=0.05):
        wait_for(lambda: len(caplog.records) >= 2)
    assert "could not be started (No such file or directory)" in caplog.text


def test_stopping_does_not_wait_for_the_next_start() -> None:
    with Supervisor(["/no/such/program"], name="nobody", first_delay_seconds=60):
        time.sleep(0.1)
        started = time.monotonic()
    assert time.monotonic() - started < 2


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    parent = f"""
import sys, time
from workers.supervisor import Supervisor
with Supervisor([sys.executable, "-c", {UNTIL_END_OF_INPUT!r}, {str(file)!r}], name="child"):
    time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=Path(__file__).parents[1])
    wait_for(lambda: file.exists() and file.read_text())
    child = int(file.read_text())
    assert alive(child)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(child))


def test_ctrl_c_on_our_terminal_does_not_reach_the_child(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with Supervisor(command(SLEEPS, marks), name="sleeper") as supervisor:
        wait_for(marks.exists)
        assert os.getpgid(supervisor.process_id or 0) != os.getpgid(0)
