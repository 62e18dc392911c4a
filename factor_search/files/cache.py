"""Locates the cache, which keeps derived data between runs."""

import contextlib
import os
from pathlib import Path


def cache_root() -> Path:
    """Return ``$FACTOR_SEARCH_CACHE`` (default ``~/.cache/factor-search``)."""
    root = os.environ.get("FACTOR_SEARCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "factor-search"
    )
    return Path(root)


def cache_folder(kind: str) -> Path:
    """Return the folder of a kind of data in the cache, and try to create it."""
    folder = cache_root() / kind
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
