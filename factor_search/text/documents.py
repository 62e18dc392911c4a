"""Reads documents from text files, JSON lines, parquet files, and saved or named Hugging Face data sets."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_search.errors import DataError, one_line
from factor_search.files.matching import matching_files
from factor_search.files.reading import readable
from factor_search.text.data_sets import hub_rows, is_saved, saved_rows

JSON_LINES = {".jsonl", ".ndjson"}
NEEDS_EXTRA = "reading {what} needs the package {package}: pip install 'factor-search[data]'"


@dataclass(frozen=True)
class Document:
    """One text and its source."""

    source: str
    """A path, followed by ``#n`` where a file contains several documents."""
    text: str


def documents_from_files(
    patterns: Sequence[str], column: str = "text", split: str = "validation"
) -> Iterator[Document]:
    """Iterate over the documents of all paths and globs, in the order given; the matches of a glob are sorted.

    Raises:
        DataError: a path or glob matches nothing, or a file cannot be read in the format of its file extension.
        SpecError: a file is not in a folder that may be read.
    """
    for pattern in patterns:
        for match in matching_files(pattern):
            place = str(readable(match, "data.files"))
            for document in _documents_of(Path(place), column, split, from_glob=match != pattern):
                source = str(Path(match)) + document.source.removeprefix(place)
                name = os.fsencode(source).decode("utf-8", "backslashreplace")  # a file name may be any bytes
                yield Document(name, document.text)


def documents_from_hub(
    dataset: str, name: str | None, split: str, column: str, revision: str | None = None
) -> Iterator[Document]:
    """Stream the documents of a data set on the Hugging Face hub.

    Raises:
        DataError: the data set, its split or its column does not exist, or the hub cannot be reached.
    """
    for number, row in enumerate(hub_rows(dataset, name, split, column, revision)):
        yield _document(f"{dataset}/{split}#{number}", row, column)


def _documents_of(path: Path, column: str, split: str, from_glob: bool) -> Iterator[Document]:
    if path.is_dir():
        if is_saved(path):
            for number, row in enumerate(saved_rows(path, split, column)):
                yield _document(f"{path}#{number}", row, column)
        elif not from_glob:
            raise DataError(f"{path} is a folder: name its files, for example {path / '*.txt'}")
    elif path.suffix in JSON_LINES:
        yield from _json_lines(path, column)
    elif path.suffix == ".parquet":
        yield from _parquet(path, column)
    else:
        yield Document(str(path), _read_text(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{path} is not UTF-8 text: byte 0x{byte:02x} at position {error.start}") from None


def _json_lines(path: Path, column: str) -> Iterator[Document]:
    for number, line in enumerate(_read_text(path).split("\n")):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number + 1} is not JSON: {error}") from None
        yield _document(f"{path}#{number}", row, column)


def _parquet(path: Path, column: str) -> Iterator[Document]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(NEEDS_EXTRA.format(what=path, package="pyarrow")) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise DataError(_no_column(str(path), column, file.schema_arrow.names))
            for batch in file.iter_batches(columns=[column], batch_size=64):
                for row in batch.to_pylist():
                    yield _document(f"{path}#{number}", row, column)
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as parquet: {one_line(error)}") from None


def _document(source: str, row: Any, column: str) -> Document:
    if not isinstance(row, dict) or column not in row:
        found = list(row) if isinstance(row, dict) else [type(row).__name__]
        raise DataError(_no_column(source, column, found))
    if not isinstance(row[column], str):
        raise DataError(f"{source}: column {column!r} holds {type(row[column]).__name__}, not text")
    return Document(source, row[column])


def _no_column(source: str, column: str, found: Sequence[str]) -> str:
    return f"{source} has no column {column!r}, only {', '.join(found)}: set data.column"
