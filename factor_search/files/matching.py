"""Files and folders that a path or glob matches, found in a bounded walk."""

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from factor_search.errors import DataError
from factor_search.files.reading import walk_budget

WILDCARD = re.compile(r"[*?\[]")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|::")
ANY_DEPTH = "**"
LONGEST_PATTERN = 4096
"""Bytes of the longest path of the operating system."""


def matching_files(pattern: str) -> list[str]:
    """Return the files and folders that a path or glob matches, sorted.

    A glob is that of the standard library with ``recursive=True``: ``**`` is any number of folders, and wildcards do
    not match names that begin with a dot. An existing path is itself, whatever characters it has.

    Raises:
        DataError: it matches nothing, is not a path, or needs too long a walk.
    """
    matches = matching_now(pattern)
    if not matches:
        raise DataError(f"no file matches {pattern}")
    return matches


def matching_now(pattern: str) -> list[str]:
    """Return what :func:`matching_files` does, or an empty list.

    Raises:
        DataError: it is not a path, or needs too long a walk.
    """
    refuse_address(pattern, "data.files")
    if len(os.fsencode(pattern)) > LONGEST_PATTERN or "\0" in pattern:
        raise DataError(f"{pattern[:100]!r}... is not a path: it is too long, or has a NUL character")
    if os.path.lexists(pattern):
        return [pattern] if os.path.exists(pattern) else []
    return sorted(_Walk(pattern).matches()) if WILDCARD.search(pattern) else []


def refuse_address(path: str, key: str) -> None:
    """Refuse an address such as ``hf://...`` or ``zip://...::...``, which some libraries open as a file.

    Raises:
        DataError: naming the key of the specification.
    """
    if ADDRESS.search(path) and not os.path.lexists(path):
        raise DataError(f"{key}: {path[:200]!r} is an address, not a path: download the files, and give their path")


def fixed_part(pattern: str) -> str:
    """The folder in which a glob begins to search: everything before the first part with a wildcard."""
    return str(Path(*itertools.takewhile(lambda part: not WILDCARD.search(part), Path(pattern).parts)))


class _Walk:
    """One search for what a glob matches; each folder is read once for each part of the pattern, however reached."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._budget = pattern, walk_budget()
        self._found: set[str] = set()
        self._left: list[tuple[str, int]] = []
        self._head, self._parts = _split(pattern)

    def matches(self) -> set[str]:
        known: set[tuple[str, int]] = set()
        self._enter(self._head, 0)
        with self._budget.searching():
            while self._left:
                folder, place = self._left.pop()
                self._budget.look(self._pattern)
                if (folder, place) not in known:
                    known.add((folder, place))
                    self._search(folder, place)
        return self._found

    def _search(self, folder: str, place: int) -> None:
        part, last = self._parts[place], place == len(self._parts) - 1
        if part == ANY_DEPTH:
            if not last:
                self._left.append((folder, place + 1))
            for entry in self._entries(folder):
                if not entry.name.startswith("."):
                    if last:
                        self._found.add(os.path.join(folder, entry.name))
                    if _is_below(entry):
                        self._left.append((os.path.join(folder, entry.name), place))
        elif WILDCARD.search(part):
            matches, hidden = re.compile(fnmatch.translate(part)).match, part.startswith(".")
            for entry in self._entries(folder):
                if matches(entry.name) and (hidden or not entry.name.startswith(".")):
                    self._continue(os.path.join(folder, entry.name), place, last)
        else:
            self._continue(os.path.join(folder, part), place, last)

    def _continue(self, path: str, place: int, last: bool) -> None:
        if not last:
            self._enter(path, place + 1)
        elif os.path.lexists(path):
            self._found.add(path)

    def _enter(self, folder: str, place: int) -> None:
        self._left.append((folder, place))
        if self._parts[place:] == [ANY_DEPTH] and folder and os.path.isdir(folder):
            self._found.add(os.path.join(folder, ""))  # any number of folders may be none

    def _entries(self, folder: str) -> Iterator["os.DirEntry[str]"]:
        try:
            with os.scandir(folder or os.curdir) as entries:
                for entry in entries:
                    self._budget.look(self._pattern)
                    yield entry
        except OSError:  # it is not a folder, is gone, or may not be read
            return


def _split(pattern: str) -> tuple[str, list[str]]:
    """The text before the first part with a wildcard, and the parts from there on; repeated ``**`` count once."""
    first = WILDCARD.search(pattern)
    assert first is not None
    cut = pattern.rfind("/", 0, first.start()) + 1
    head, rest = pattern[:cut], pattern[cut:].split("/")
    parts: list[str] = []
    for number, part in enumerate(rest):
        empty = not part and number < len(rest) - 1
        if not empty and not (part == ANY_DEPTH and parts[-1:] == [ANY_DEPTH]):
            parts.append(part)
    return head.rstrip("/") or head[:1], parts


def _is_below(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, and not a link to one that holds it."""
    try:
        if not entry.is_dir():
            return False
        return not entry.is_symlink() or not Path(entry.path).parent.resolve().is_relative_to(
            Path(entry.path).resolve()
        )
    except (OSError, RuntimeError):  # gone, or a loop of links
        return False
