"""A folder that one process works in at a time, whichever machine it is on."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from factor_search.errors import OutputError

LOCK = "lock"
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 600.0
"""A worker that was given up may take a while to notice."""


@contextlib.contextmanager
def used_alone(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Within this context nobody else who asks for it works in the folder, which is made if need be.

    The lock ends with the process. On a network file system it holds between machines if that has locks.

    Args:
        folder: to work in.
        waiting: called now and then while somebody else works there; may raise to give up.

    Raises:
        OutputError: the folder cannot be used.
        TimeoutError: somebody else does not let go of it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise OutputError(f"cannot use {folder}: {error.strerror or error}") from None
    with lock:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process works in {folder}") from None
                waiting()
                time.sleep(POLL_SECONDS)
        yield
