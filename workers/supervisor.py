"""A child process that is restarted when it dies, and ends with this process even if that is killed."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


class Supervisor:
    """A context manager that keeps a command running.

    Its standard input is a pipe to which nothing is written. The kernel closes the other end when this process ends
    for whatever reason, so a command that exits at the end of its input never outlives this process. The command runs
    in its own session, so Ctrl-C on the terminal does not reach it directly.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
        first_delay_seconds: float = 1.0,
        longest_delay_seconds: float = 30.0,
        settled_seconds: float = 60.0,
        stop_timeout_seconds: float = 10.0,
    ) -> None:
        """Prepare; the command starts when the context is entered.

        Args:
            command: program and arguments.
            name: its name in log lines.
            environment: of the command; by default that of this process.
            first_delay_seconds: delay before the first restart; doubled after each early exit.
            longest_delay_seconds: upper limit of the delay.
            settled_seconds: an exit after this time is not early, and resets the delay.
            stop_timeout_seconds: between SIGTERM and SIGKILL when stopping.
        """
        self._command = list(command)
        self._name = name
        self._environment = environment
        self._first_delay = first_delay_seconds
        self._longest_delay = longest_delay_seconds
        self._settled = settled_seconds
        self._stop_timeout = stop_timeout_seconds
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"supervisor of {name}", daemon=True)

    def __enter__(self) -> "Supervisor":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def process_id(self) -> int | None:
        """The running child's process id; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ask_to_stop(self) -> None:
        """Send SIGTERM and do not restart the command; returns at once."""
        with self._lock:
            self._stopping.set()
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def stop(self) -> None:
        """Ask the child to stop, and kill its session if it does not stop in time."""
        self.ask_to_stop()
        process = self._process
        if process is not None:
            try:
                process.wait(self._stop_timeout)
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop within %g s and is killed", self._name, self._stop_timeout)
                kill_session(process.pid)
        self._thread.join()

    def kill(self) -> None:
        """End the child and its session at once, without asking; it is not restarted."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            kill_session(process.pid)

    def _run(self) -> None:
        delay = self._first_delay
        while not self._stopping.is_set():
            started = time.monotonic()
            ended = self._run_once()
            if self._stopping.is_set():
                return
            lived = time.monotonic() - started
            if lived >= self._settled:
                delay = self._first_delay
            logger.error("%s %s after %.0f s; restarting it in %g s", self._name, ended, lived, delay)
            self._stopping.wait(delay)
            delay = min(2 * delay, self._longest_delay)

    def _run_once(self) -> str:
        """Start the command, wait for its end, and return a description of how it ended."""
        with self._lock:
            if self._stopping.is_set():
                return "was not started"
            try:
                self._process = process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, env=self._environment, start_new_session=True
                )
            except OSError as error:
                return f"could not be started ({error.strerror or error})"
        status = process.wait()
        if process.stdin is not None:
            process.stdin.close()
        kill_session(process.pid)
        return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


def kill_session(session: int) -> None:
    """Kill the processes that a dead leader left in its session; some of Ray's would run for minutes."""
    for process_id in _process_ids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process_id) == session:
                os.kill(process_id, signal.SIGKILL)


def _process_ids() -> Iterator[int]:
    if Path("/proc/self").exists():
        return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    listing = subprocess.run(["ps", "-A", "-o", "pid="], capture_output=True, text=True, check=True)  # on macOS
    return map(int, listing.stdout.split())
