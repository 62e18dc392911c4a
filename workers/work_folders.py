"""The folders of jobs in the work folder: their sizes, and the removal of those that nothing refers to."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from factor_search.errors import OutputError
from factor_search.files.atomic import PARTIAL, remove_unused
from factor_search.plan.kinds import KINDS
from workers.folder_lock import remove_folder

NAME = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{24}}")


def folders_in(work: Path | None) -> list[str]:
    """Names of the folders of jobs; others in the work folder are not ours."""
    if work is None or not work.is_dir():
        return []
    return sorted(item.name for item in work.iterdir() if NAME.fullmatch(item.name) and item.is_dir())


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder and below; a file with several names in it counts once."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(place, name))
                seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def remove_folders(work: Path | None, names: Iterable[str], unused: Callable[[Iterable[str]], set[str]]) -> int:
    """Remove folders that nothing refers to and no worker uses, and what a killed removal left.

    Args:
        work: the work folder.
        names: of the folders.
        unused: returns those of some folders that nothing stored refers to; asked again for each, right before.

    Returns:
        Bytes that were freed.

    Raises:
        OutputError: one cannot be removed.
    """
    if work is None or not work.is_dir():
        return 0
    freed = 0
    for name in names:
        size = size_of(work / name)
        if NAME.fullmatch(name) and unused([name]) and remove_folder(work / name):
            freed += size
    try:
        for left in work.glob(f".*{PARTIAL}*"):
            remove_unused(left)
    except OSError as error:
        raise OutputError(f"cannot remove what is in {work}: {error.strerror or error}") from None
    return freed
