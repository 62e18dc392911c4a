"""A lock on a folder that holds between processes and machines."""

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
    """Hold the lock of a folder, which is created if necessary, within this context.

    The lock ends with the process. It holds between machines if the network file system supports locks. There is no
    time limit, because another worker may legitimately hold the lock for days while it does the same for another plan.

    Args:
        folder: the folder to lock.
        waiting: receives the seconds waited so far while another process holds the lock; may raise to give up.

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
