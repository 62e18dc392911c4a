"""Which files may be read now, decided when a file is opened, about the file that was opened.

A service checks the names in a specification when it is submitted. Until a worker opens them, a link may have been
changed; and a file may name others. So the rules travel to where files are read, and apply to what a name leads to:
:func:`open_readable` opens first, then asks the operating system which file that is. Where it cannot say, the path is
resolved before it is opened. Outside of a service there are no rules: users read what they can read.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from factor_search.errors import SpecError

DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, kw_only=True)
class ReadingRules:
    """What may be read."""

    roots: tuple[Path, ...] | None = None
    """Folders, resolved; None for every folder."""
    model_roots: tuple[Path, ...] = ()
    """Further folders, for files of models only."""
    files: frozenset[Path] = frozenset()
    """Single files, resolved."""
    hub: bool = True
    """Whether models and data sets may come from the Hugging Face hub."""
    remote_code: bool = True
    """Whether code that comes with a model, or from the hub, may be run."""

    def allow(self, resolved: Path, *, model: bool = False) -> bool:
        """Whether a resolved path may be read."""
        if self.roots is None or resolved in self.files:
            return True
        return any(resolved.is_relative_to(root) for root in (*self.roots, *(self.model_roots if model else ())))

    def check(self, path: str | Path, key: str, *, model: bool = False, shown: str | None = None) -> Path:
        """Resolve a path, and refuse it unless it may be read.

        Args:
            path: a file or folder, which need not exist.
            key: of the specification, or what names the path, for the message.
            model: whether it belongs to a model.
            shown: the path in the message, if not ``path``.

        Returns:
            Where the path leads.

        Raises:
            SpecError: it leads elsewhere, or cannot be a path.
        """
        resolved = resolve(path, key)
        if not self.allow(resolved, model=model):
            raise SpecError(
                f"{key}: {shown or path} is not in a folder that jobs may use: the operator can allow a folder with "
                "--root"
            )
        return resolved


EVERYTHING = ReadingRules()
_RULES: ContextVar[ReadingRules] = ContextVar("reading_rules", default=EVERYTHING)


def reading_rules() -> ReadingRules:
    """The rules that apply to this thread now."""
    return _RULES.get()


@contextlib.contextmanager
def under(rules: ReadingRules) -> Iterator[None]:
    """Apply rules to everything that this thread reads within the context."""
    token = _RULES.set(rules)
    try:
        yield
    finally:
        _RULES.reset(token)


def readable(path: str | Path, key: str, *, model: bool = False) -> Path:
    """Where a path leads, if it may be read now; see :meth:`ReadingRules.check`.

    Raises:
        SpecError: it may not.
    """
    return _RULES.get().check(path, key, model=model)


def open_readable(path: str | Path, key: str, *, model: bool = False) -> int:
    """Open a regular file for reading if it may be read now, and return its descriptor.

    What is checked is the file that was opened, so a link that changes meanwhile changes nothing.

    Raises:
        SpecError: it may not be read, or cannot be a path.
        OSError: it cannot be opened, or is a folder, pipe or device.
    """
    resolved = readable(path, key, model=model)
    descriptor = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        if (opened := DESCRIPTORS / str(descriptor)).is_symlink():
            _RULES.get().check(Path(os.readlink(opened)), key, model=model, shown=str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def resolve(path: str | Path, key: str) -> Path:
    """Follow all links of a path, which need not exist.

    Raises:
        SpecError: it is too long, has a NUL character, or is a loop of links.
    """
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{key}: {str(path)[:100]!r} is not a valid path: {reason}") from None
