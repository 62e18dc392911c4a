"""The private server of ``factor-search demo``: it ends with the command, however that ends."""

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from factor_search.errors import FactorSearchError

DATABASE, LOG = "jobs.db", "server.log"
STOP_SECONDS = 20
"""More than a server takes to stop, see :data:`api.server.STOP_SECONDS`."""
START_SECONDS = 300
LOG_LINES = 20
GIVES_UP = re.compile(r"coordinator (exited|was killed|could not be started)")


class DemoError(FactorSearchError):
    """The demo's server did not start."""


@contextlib.contextmanager
def server(out: Path, *roots: Path) -> Iterator[str]:
    """A private server with its coordinator, which may read these folders; yields its address.

    Raises:
        DemoError: the server or its coordinator did not come up; the message ends with the last lines of the log.
    """
    command = [sys.executable, "-P", "-m", "api", "serve", "--port", "0", "--database", f"sqlite:///{out / DATABASE}"]
    command += ["--stop-at-end-of-input", *(argument for root in roots for argument in ("--root", str(root)))]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FACTOR_SEARCH_")}
    ours |= {name: os.environ[name] for name in ("FACTOR_SEARCH_CACHE", "FACTOR_SEARCH_DEBUG") if name in os.environ}
    log = out / LOG
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end, at ours, ends the server even if this process is killed
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env=ours,
            start_new_session=True,
        )
    try:
        yield _when_ready(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _when_ready(process: "subprocess.Popen[str]", log: Path) -> str:
    """The address of a server whose coordinator is up."""
    assert process.stdout is not None
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    until = time.monotonic() + START_SECONDS
    address = ""
    while time.monotonic() < until:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=0.2)
            if not line:
                break
            if line.startswith("serving at "):  # "serving at URL (..."
                address = line.split()[2]
            if line.startswith("coordinator ready"):
                return address
        if address and GIVES_UP.search(log.read_text(errors="replace")):
            break
    what = "coordinator" if address else "server"
    raise DemoError(f"the {what} did not come up; the end of {log}:\n{last_lines(log.read_text(errors='replace'))}")


def _read(stream: IO[str], lines: "queue.SimpleQueue[str]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def last_lines(text: str) -> str:
    """The last lines of a log, indented, as one block."""
    shown = ["".join(filter(str.isprintable, line))[:500] for line in text.strip().splitlines()[-LOG_LINES:]]
    return "\n".join(f"    {line}" for line in shown or ["(it is empty)"])
