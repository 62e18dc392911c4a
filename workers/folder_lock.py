"""A lock on a folder that holds between processes and machines, and the removal of folders that nobody holds."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from factor_search.errors import OutputError
from factor_search.files.atomic import PARTIAL, remove_unused, to_disk

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
    since = time.monotonic()
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK).open("w")
        except OSError as error:
            raise OutputError(f"cannot use {folder}: {error.strerror or error}") from None
        with lock:
            while not _locked(lock):
                waiting(time.monotonic() - since)
                time.sleep(POLL_SECONDS)
            if _is_of(lock, folder):
                yield
                return


def remove_folder(folder: Path) -> bool:
    """Remove a folder unless somebody holds its lock; returns whether it is gone.

    It is renamed under the lock, and then removed: whoever comes meanwhile begins with a new folder.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        with (folder / LOCK).open("w") as lock:
            if not (_locked(lock) and _is_of(lock, folder)):
                return False
            aside = folder.with_name(f".{folder.name}{PARTIAL}{secrets.token_hex(6)}")
            folder.rename(aside)
            to_disk(folder.parent)
        return remove_unused(aside)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror or error}") from None


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_of(lock: IO[str], folder: Path) -> bool:
    """Whether a lock is that of the folder, which may have been removed while we waited for it."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat())
    except FileNotFoundError:
        return False
