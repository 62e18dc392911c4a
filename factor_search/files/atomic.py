"""Writes files atomically: a reader sees the old content or the new one, never a part."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from factor_search.errors import OutputError


def write_text(file: Path, text: str) -> None:
    """Write a text file as UTF-8, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        write_atomically(file, text.encode(), required=True)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from None


def write_atomically(file: Path, content: bytes, *, required: bool = False) -> None:
    """Write a temporary file in the same folder, then rename it to its final name.

    Args:
        file: the destination; its folder must exist.
        content: all bytes of the file.
        required: True raises when the file cannot be written (a result); False ignores it (a cache).

    Raises:
        OSError: the file cannot be written, and ``required`` is True.
    """
    try:
        with replacing(file) as stream:
            stream.write(content)
    except OSError:
        if required:
            raise


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Open a temporary file in the same folder, which gets the final name after it was written without an error.

    Raises:
        OSError: the file cannot be written.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
