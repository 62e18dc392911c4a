"""Rows of Hugging Face data sets: folders saved by ``save_to_disk``, and names on the hub.

Both name files inside of files: ``state.json`` those with the rows, README.md on the hub those of each split. Each of
them is checked before it is opened, and nothing else is opened: a saved data set is read here, and not by a library
that looks for files itself, and a name on the hub never stands for a local folder or a loader.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from factor_search.errors import DataError, FactorSearchError, one_line
from factor_search.files.hub import asking_hub
from factor_search.files.json_documents import read_json
from factor_search.files.reading import open_readable, readable, reading_rules

SPLITS, STATE, INFORMATION = "dataset_dict.json", "state.json", "dataset_info.json"
"""What ``save_to_disk`` writes beside the rows."""
NEEDS_EXTRA = "reading {what} needs the package {package}: pip install 'factor-search[data]'"
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
READERS = ("arrow", "csv", "json", "parquet", "text")
"""Loaders of the package datasets for files with rows of text. Others unpickle, unpack, or open what rows name."""


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a saved data set."""
    return any((folder / name).exists() for name in (INFORMATION, SPLITS, STATE))


def saved_rows(path: Path, split: str, column: str) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a saved data set, with one column each; with all column names if that one is not there.

    Raises:
        DataError: the folder is broken, names files outside of itself, or has no such split.
        SpecError: a file is not in a folder that may be read.
    """
    for file in saved_files(path, split):
        yield from _arrow_rows(file, column)


def saved_files(path: Path, split: str) -> list[Path]:
    """The files with the rows of a saved data set, in order; all of them may be read.

    Raises:
        DataError: the folder is broken, names files outside of itself, or has no such split.
        SpecError: a file is not in a folder that may be read.
    """
    if (path / SPLITS).exists():
        splits = _content(path / SPLITS).get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise DataError(f"{path / SPLITS} has no list of splits: save the data set again")
        if split not in splits:
            raise DataError(f"{path} has no split {split!r}, only {', '.join(splits)}")
        path = path / _inside(split, path / SPLITS)
    files = _content(path / STATE).get("_data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise DataError(f"{path / STATE} has no list of files: save the data set again")
    inside = [path / _inside(file.get("filename"), path / STATE) for file in files]
    for file in inside:
        readable(file, f"the data set {path}")
    return inside


def hub_rows(dataset: str, name: str | None, split: str, column: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """Stream the rows of a data set on the Hugging Face hub, with one column each if it is there.

    Raises:
        DataError: the data set or its split does not exist, or names files outside of itself; or the hub cannot be
            reached.
        SpecError: the hub may not be used.
    """
    check_hub_name(dataset)
    datasets = _datasets(f"data set {dataset}")
    try:
        with asking_hub(dataset):
            builder = datasets.load_dataset_builder(dataset, name, revision=revision)
        _check_builder(builder, dataset)
        rows = builder.as_streaming_dataset(split=split).decode(False)  # images and sounds name further files
        if column in (rows.column_names or ()):
            rows = rows.select_columns([column])
        yield from rows
    except FactorSearchError:
        raise
    except Exception as error:  # whatever the hub client and the loaders raise
        raise DataError(f"cannot read split {split!r} of data set {dataset}: {one_line(error)}") from error


def check_hub_name(dataset: str) -> None:
    """Refuse what is not a name of a data set on the hub: an address, a folder, a loader.

    Raises:
        DataError: saying what it is, or that the hub may not be used.
    """
    shown = repr(dataset[:200])
    if "://" in dataset or "::" in dataset:
        what = f"{shown} is an address, not the name of a data set on the hub, which is owner/name"
    elif os.path.lexists(dataset):
        what = f"{shown} is a folder or file here, not a data set on the hub"
    elif not HUB_NAME.fullmatch(dataset) or ".." in dataset or "--" in dataset or dataset.startswith("buckets/"):
        what = f"{shown} is not the name of a data set on the hub, which is owner/name"
    elif "/" not in dataset and _is_loader(dataset):
        what = f"{shown} is the name of a loader of files, not of a data set; one of the hub is owner/name"
    elif not reading_rules().hub:
        what = f"{shown} would come from the hub, but the hub is not allowed here"
    else:
        return
    raise DataError(f"data.dataset: {what}: name local files in data.files, for example 'folder/**/*.parquet'")


def _is_loader(name: str) -> bool:
    """Whether the package datasets takes a name for a loader; where it is not installed, any bare name may be one."""
    try:
        from datasets import packaged_modules
    except ImportError:
        return True
    return name in packaged_modules._PACKAGED_DATASETS_MODULES


def _check_builder(builder: Any, dataset: str) -> None:
    """Refuse a data set whose metadata names files outside of its own repository, or a loader that opens others."""
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in READERS:
        raise DataError(
            f"data set {dataset} is read by the loader {reader!r}, which is not for text: give one with files of the "
            f"kinds {', '.join(READERS)}, or download it and name its files in data.files"
        )
    for files in (builder.config.data_files or {}).values():
        for file in files:
            if not str(file).startswith(f"hf://datasets/{dataset}@"):
                raise DataError(f"data set {dataset} names {str(file)[:200]!r}, which is not in its own repository")


def _inside(name: Any, holder: Path) -> str:
    """A name of a file or folder below the one that holds ``holder``."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ("..",)
    if not parts or ".." in parts or parts[0] == "/" or "\0" in name or "://" in name:
        raise DataError(f"{holder} names {str(name)[:200]!r}, which is not a file below its folder")
    return str(name)


def _content(file: Path) -> dict[str, Any]:
    readable(file, "a saved data set")
    content = read_json(file, DataError)
    if not isinstance(content, dict):
        raise DataError(f"{file} is not a JSON object: save the data set again")
    return content


def _arrow_rows(file: Path, column: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise DataError(NEEDS_EXTRA.format(what=file, package="pyarrow")) from None
    try:
        with _opened(file) as stream, pyarrow.ipc.open_stream(stream) as batches:
            if column not in batches.schema.names:
                yield dict.fromkeys(batches.schema.names)
            for batch in batches:
                for value in batch.column(column):
                    yield {column: value.as_py()}
    except FactorSearchError:
        raise
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {file} as rows of a saved data set: {one_line(error)}") from None


def _opened(file: Path) -> BinaryIO:
    return os.fdopen(open_readable(file, "a saved data set"), "rb")


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(NEEDS_EXTRA.format(what=what, package="datasets")) from None
    datasets.disable_progress_bars()
    return datasets
