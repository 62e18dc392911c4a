"""Locates the cache, which keeps derived data between runs."""

import contextlib
import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return a folder inside ``$FACTOR_SEARCH_CACHE`` (default ``~/.cache/factor-search``), and try to create it."""
    root = os.environ.get("FACTOR_SEARCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "factor-search"
    )
    folder = Path(root) / kind
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
