"""Which files may be read now, decided when a file is opened, about the file that was opened.

A service checks the names in a specification when it is submitted. Until a worker opens them, a link may have been
changed; and a file may name others. So the rules travel to where files are read, and apply to what a name leads to:
:func:`open_readable` opens first, then asks the operating system which file that is. Where it cannot say, the path is
resolved before it is opened. Outside of a service there are no rules: users read what they can read.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from factor_search.errors import DataError, SpecError

DESCRIPTORS = Path("/proc/self/fd")
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""What is not a regular file, by its type."""


@dataclass(frozen=True)
class WalkLimit:
    """How far searches for files may go together; what needs more is refused."""

    entries: int
    """Files and folders looked at."""
    seconds: float


PATIENT = WalkLimit(10_000_000, 3600.0)
"""For users on their own machine."""


class WalkBudget:
    """What is left of a limit."""

    def __init__(self, limit: WalkLimit) -> None:
        self._limit = limit
        self._entries, self._seconds, self._since = limit.entries, limit.seconds, 0.0

    @contextlib.contextmanager
    def searching(self) -> Iterator[None]:
        """Count the time within this context."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._seconds -= time.monotonic() - self._since

    def look(self, pattern: str) -> None:
        """Count one file or folder.

        Raises:
            DataError: it is one too many, or takes too long; names the pattern.
        """
        self._entries -= 1
        if self._entries < 0 or time.monotonic() - self._since > self._seconds:
            raise DataError(
                f"{pattern[:200]} is found only by looking at more than {self._limit.entries:,} files and folders, or "
                f"longer than {self._limit.seconds:g} s: name a folder nearer to the files"
            )


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
    walk: WalkLimit = PATIENT
    """For all globs of a specification together."""

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
            name = str(shown or path)[:300]
            if self.allow(Path(os.path.abspath(path)), model=model):
                name += " links out: it"
            raise SpecError(
                f"{key}: {name} is not in a folder that jobs may use: the operator can allow one with --root"
            )
        return resolved


EVERYTHING = ReadingRules()
_RULES: ContextVar[ReadingRules] = ContextVar("reading_rules", default=EVERYTHING)
_BUDGET: ContextVar[WalkBudget | None] = ContextVar("walk_budget", default=None)


def reading_rules() -> ReadingRules:
    """The rules that apply to this thread now."""
    return _RULES.get()


@contextlib.contextmanager
def under(rules: ReadingRules) -> Iterator[None]:
    """Apply rules to everything that this thread reads within the context."""
    token, budget = _RULES.set(rules), _BUDGET.set(WalkBudget(rules.walk))
    try:
        yield
    finally:
        _RULES.reset(token)
        _BUDGET.reset(budget)


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Let this thread read any file within the context, since all that it opens was checked before."""
    token = _RULES.set(replace(_RULES.get(), roots=None))
    try:
        yield
    finally:
        _RULES.reset(token)


def walk_budget() -> WalkBudget:
    """What the searches for files of this thread share; a new one for each where there are no rules."""
    return _BUDGET.get() or WalkBudget(PATIENT)


def readable(path: str | Path, key: str, *, model: bool = False) -> Path:
    """Where a path leads, if it may be read now; see :meth:`ReadingRules.check`. The path itself if there are no rules.

    Raises:
        SpecError: it may not.
    """
    rules = _RULES.get()
    return Path(path) if rules.roots is None else rules.check(path, key, model=model)


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
        if (kind := kind_unless_regular(os.fstat(descriptor).st_mode)) is not None:
            raise OSError(f"it is {kind}, not a regular file")
        if _RULES.get().roots is not None and (opened := DESCRIPTORS / str(descriptor)).is_symlink():
            _RULES.get().check(Path(os.readlink(opened)), key, model=model, shown=str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def kind_unless_regular(mode: int) -> str | None:
    """What a file is, from the mode in its status; None if it is a regular file."""
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "something else")


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
