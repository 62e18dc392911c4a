"""A child process that is kept running: started again when it dies, ended with us, even if we are killed."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

import psutil

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs a command until stopped; a context manager.

    The command is given a pipe as standard input that nothing is ever written to. Its other end is closed by the
    kernel when this process ends in whatever way, so a command that exits at the end of its input never outlives us.
    It has a session of its own: Ctrl-C on our terminal is ours to pass on.
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
        """Prepare; nothing runs before the context is entered.

        Args:
            command: program and arguments.
            name: what log lines call it.
            environment: of the command, default ours.
            first_delay_seconds: before it is started again the first time; doubled each time it dies young.
            longest_delay_seconds: where the doubling ends.
            settled_seconds: who lived this long did not die young.
            stop_timeout_seconds: between the polite request to stop and the kill.
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
        """Of the running child, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ask_to_stop(self) -> None:
        """Send SIGTERM and start it no more; returns at once."""
        with self._lock:
            self._stopping.set()
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def stop(self) -> None:
        """Ask the child to stop, wait, and kill it with all of its group if it does not."""
        self.ask_to_stop()
        process = self._process
        if process is not None:
            try:
                process.wait(self._stop_timeout)
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop within %g s and is killed", self._name, self._stop_timeout)
                _kill_session(process.pid)
        self._thread.join()

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
            logger.error("%s %s after %.0f s; it is started again in %g s", self._name, ended, lived, delay)
            self._stopping.wait(delay)
            delay = min(2 * delay, self._longest_delay)

    def _run_once(self) -> str:
        """Start the command, wait for its end, and say what that was."""
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
        _kill_session(process.pid)
        return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


def _kill_session(session: int) -> None:
    """Kill what a dead leader left of its session: some of Ray's processes linger for minutes."""
    for process_id in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process_id) == session:
                os.kill(process_id, signal.SIGKILL)
