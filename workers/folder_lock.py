"""A folder that one process works in at a time, whichever machine it is on."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from factor_search.errors import OutputError

LOCK = "lock"
POLL_SECONDS = 0.2


@contextlib.contextmanager
def locked_folder(folder: Path, waiting: Callable[[float], None]) -> Iterator[None]:
    """Within this context nobody else who asks for it works in the folder, which is made if need be.

    The lock ends with the process. On a network file system it holds between machines if that has locks. Whoever works
    there may do the same for another plan, and take days: there is no end to the waiting but that which is made.

    Args:
        folder: to work in.
        waiting: called with the seconds so far while somebody else works there; may raise to give up.

    Raises:
        OutputError: the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise OutputError(f"cannot use {folder}: {error.strerror or error}") from None
    with lock:
        since = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting(time.monotonic() - since)
                time.sleep(POLL_SECONDS)
        yield
