"""Opens a user's files: regular files only, so that no FIFO, device or socket is waited for."""

import io
import os
from pathlib import Path

from factor_search.files.reading import kind_unless_regular, open_readable


def require_regular(file: Path, error_type: type[Exception]) -> None:
    """Refuse what is not a regular file, without opening it; links are followed.

    Raises:
        error_type: it is something else, or there is none; the message is one line and names the file.
    """
    try:
        _require_regular(file, os.stat(file).st_mode, error_type)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise error_type(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


def open_regular(file: Path, error_type: type[Exception], *, model: bool = False) -> io.BufferedReader:
    """Open a regular file to read its bytes; links are followed.

    Args:
        file: its path.
        error_type: the type of the errors.
        model: whether it belongs to a model.

    Raises:
        error_type: it is something else, or cannot be opened; the message is one line and names the file.
        SpecError: it may not be read (:mod:`factor_search.files.reading`).
    """
    require_regular(file, error_type)
    try:  # it may have become another file meanwhile
        descriptor = open_readable(file, str(file), model=model)
    except OSError as error:
        raise error_type(f"cannot read {file}: {error.strerror or error}") from None
    return os.fdopen(descriptor, "rb")


def read_regular(file: Path, error_type: type[Exception], limit: int, *, model: bool = False) -> bytes:
    """Return all bytes of a regular file.

    Args:
        file: its path.
        error_type: the type of the errors.
        limit: the most bytes that it may have.
        model: whether it belongs to a model.

    Raises:
        error_type: see :func:`open_regular`; or it has more bytes, or cannot be read.
    """
    try:
        with open_regular(file, error_type, model=model) as stream:
            size = os.fstat(stream.fileno()).st_size
            content = stream.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise error_type(f"cannot read {file}: {error.strerror or error}") from None
    if size > limit or len(content) > limit:  # the size of some files, as in /proc, is given as 0
        raise error_type(f"{file} is larger than {limit // 2**20} MiB, the most that is read of such a file")
    return content


def _require_regular(file: Path, mode: int, error_type: type[Exception]) -> None:
    if (kind := kind_unless_regular(mode)) is not None:
        raise error_type(f"{file} is {kind}, not a regular file: write the content to a file and name that")
