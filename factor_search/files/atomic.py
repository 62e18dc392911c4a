"""Writes files and folders whole or not at all: a reader sees the old content or the new one, never a part.

What is written lies beside its destination under the name of a partial file or folder until it is complete. Its writer
holds a lock on it, so that one left by a killed process is told from one that is being written, and is removed when the
same destination is written again.
"""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from factor_search.errors import OutputError

PARTIAL = ".partial-"
"""In the names of what is not complete, after a dot and the beginning of the final name."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the quota or the limit of a file's size is reached."""


def write_text(file: Path, text: str) -> None:
    """Write a text file as UTF-8, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        write_atomically(file, text.encode(), required=True)
    except OSError as error:
        raise cannot_write(file, error) from None


def cannot_write(file: Path | str, error: OSError) -> OutputError:
    """The error that says which file cannot be written and why, and what helps against a full disk."""
    advice = ": free some space, and give the same command again" if error.errno in FULL else ""
    return OutputError(f"cannot write {file}: {error.strerror or error}{advice}")


def write_atomically(file: Path, content: bytes, *, required: bool = False) -> None:
    """Write a temporary file in the same folder, then rename it to its final name.

    Args:
        file: the destination; its folder must exist.
        content: all bytes of the file.
        required: True raises when the file cannot be written, and lets it survive a power failure (a result); False
            does neither (a cache).

    Raises:
        OSError: the file cannot be written, and ``required`` is True.
    """
    try:
        with replacing(file, durable=required) as stream:
            stream.write(content)
    except OSError:
        if required:
            raise


@contextlib.contextmanager
def replacing(file: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file in the same folder, which gets the final name after it was written without an error.

    It has the mode that the umask gives.

    Args:
        file: the destination.
        durable: flush the file and its name to the disk, and remove what a killed process left of the same file.

    Raises:
        OSError: the file cannot be written.
    """
    if durable:
        remove_abandoned(file)
    partial, descriptor = _begin(file, lambda path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(descriptor)
            os.replace(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    if durable:
        to_disk(file.parent)


@contextlib.contextmanager
def partial_folder(final: Path) -> Iterator[Path]:
    """Create an empty folder beside a destination, and remove it at the end unless it was moved there.

    What killed processes left of the same destination is removed first.

    Raises:
        OSError: it cannot be created.
    """
    remove_abandoned(final)
    partial, descriptor = _begin(final, _make_folder)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def move_folder(partial: Path, final: Path) -> None:
    """Give a complete folder its final name, so that it survives a power failure, then delete what had that name.

    Raises:
        OSError: it cannot be written.
    """
    for item in partial.rglob("*"):
        if not item.is_symlink():
            to_disk(item)
    to_disk(partial)
    replaced = _partial_name(final) if final.exists() else None
    if replaced is not None:
        final.rename(replaced)
    partial.rename(final)
    to_disk(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def to_disk(path: Path) -> None:
    """Flush a file or folder to the disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def remove_abandoned(final: Path) -> None:
    """Remove what killed processes left beside a destination; what a process still writes stays.

    Raises:
        OSError: it cannot be removed.
    """
    for found in glob.glob(f"{glob.escape(_prefix(final))}*", root_dir=final.parent, include_hidden=True):
        remove_unused(final.parent / found)


def remove_unused(path: Path) -> bool:
    """Remove a file or folder unless a process holds a lock on it; returns whether it is gone.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # it is in use, or the file system has no locks
            return False
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return True
    finally:
        os.close(descriptor)


def _prefix(final: Path) -> str:
    return f".{os.fsdecode(os.fsencode(final.name)[:80])}{PARTIAL}"


def _partial_name(final: Path) -> Path:
    return final.with_name(f"{_prefix(final)}{secrets.token_hex(6)}")


def _begin(final: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create a partial file or folder and lock it; another process may have removed it before it was locked."""
    while True:
        partial = _partial_name(final)
        descriptor = create(partial)
        with contextlib.suppress(OSError):  # a file system without locks: then nothing is taken to be abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if partial.exists():
            return partial, descriptor
        os.close(descriptor)


def _make_folder(path: Path) -> int:
    while True:
        path.mkdir()
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
