"""Rows of Hugging Face data sets: folders saved by ``save_to_disk``, and names on the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factor_search.errors import DataError, one_line

SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""A folder with one of these files was written by ``save_to_disk``."""
NEEDS_DATASETS = "reading {what} needs the package datasets: pip install 'factor-search[data]'"


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a saved data set."""
    return any((folder / name).exists() for name in SAVED)


def saved_rows(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a saved data set.

    Raises:
        DataError: the folder is broken, or has no such split.
    """
    datasets = _datasets(str(path))
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the loader raises on broken files
        raise DataError(f"cannot read {path} as a saved data set: {one_line(error)}") from error
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise DataError(f"{path} has no split {split!r}, only {', '.join(rows)}")
        rows = rows[split]
    yield from rows


def hub_rows(dataset: str, name: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Stream the rows of a data set on the Hugging Face hub.

    Raises:
        DataError: the data set or its split does not exist, or the hub cannot be reached.
    """
    datasets = _datasets(f"data set {dataset}")
    try:
        yield from datasets.load_dataset(dataset, name, split=split, streaming=True)
    except Exception as error:  # whatever the hub client and the loaders raise
        raise DataError(f"cannot read split {split!r} of data set {dataset}: {one_line(error)}") from error


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(NEEDS_DATASETS.format(what=what)) from None
    datasets.disable_progress_bars()
    return datasets
