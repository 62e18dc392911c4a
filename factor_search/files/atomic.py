"""Files that a reader never sees half of: written beside their place, and renamed over it."""

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomically(file: Path, content: bytes, *, required: bool = False) -> None:
    """Write beside the file and rename over it.

    Args:
        file: the destination; its folder must exist.
        content: all of the bytes.
        required: whether a failure is raised (a result) or ignored (a cache, which can be derived again).

    Raises:
        OSError: the file cannot be written, if ``required``.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError:
        if required:
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
