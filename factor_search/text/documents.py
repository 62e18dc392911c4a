"""Reads documents from files of many formats, and from saved or named Hugging Face data sets."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from factor_search.errors import DataError
from factor_search.files.matching import matching_files
from factor_search.files.reading import readable
from factor_search.files.regular import open_regular, require_regular
from factor_search.text.data_sets import hub_rows, is_saved, saved_rows
from factor_search.text.formats import decompressed, format_of, read_text
from factor_search.text.parquet_rows import parquet_rows
from factor_search.text.rows import Document as Document
from factor_search.text.rows import Row, csv_rows, document_of_row, json_line_rows, json_rows


def document_files(pattern: str) -> list[str]:
    """Return the files and folders that a path or glob matches, sorted.

    Raises:
        DataError: it matches nothing, or a file of a kind that is not read.
    """
    matches = matching_files(pattern)
    for match in map(Path, matches):
        if not match.is_dir():
            require_regular(match, DataError)
            format_of(match)
    return matches


def documents_from_files(
    patterns: Sequence[str], column: str = "text", split: str = "validation"
) -> Iterator[Document]:
    """Iterate over the documents of all paths and globs, in the order given; the matches of a glob are sorted.

    Raises:
        DataError: a path or glob matches nothing, or a file cannot be read in the format of its file extension.
        SpecError: a file is not in a folder that may be read.
    """
    for pattern in patterns:
        for match in document_files(pattern):
            place = readable(match, "data.files")
            if not place.is_dir():  # the ending of the name that was given says the format, not that of a link's target
                place = Path(match)
            for document in _documents_of(place, column, split, from_glob=match != pattern):
                source = str(Path(match)) + document.source.removeprefix(str(place))
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
        yield document_of_row(f"{dataset}/{split}#{number}", row, column)


def _documents_of(path: Path, column: str, split: str, from_glob: bool) -> Iterator[Document]:
    if path.is_dir():
        if is_saved(path):
            for number, row in enumerate(saved_rows(path, split, column)):
                yield document_of_row(f"{path}#{number}", row, column)
        elif not from_glob:
            raise DataError(f"{path} is a folder: name its files, for example {path / '*.txt'}")
    else:
        yield from _documents_in(path, column)


def _documents_in(path: Path, column: str) -> Iterator[Document]:
    kind, compression = format_of(path)
    try:
        with open_regular(path, DataError) as file:
            if kind == ".parquet":
                rows = parquet_rows(path, file, column)
            else:
                stream = decompressed(path, file, compression)
                if kind == ".txt":
                    yield Document(str(path), read_text(path, stream))
                    return
                rows = _rows(kind, path, stream, column)
            for row in rows:
                source = f"{path}#{row.number}"
                if kind == ".json" and isinstance(row.value, str):
                    yield document_of_row(source, {column: row.value}, column, place=row.place)
                else:
                    yield document_of_row(source, row.value, column, place=row.place)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _rows(kind: str, path: Path, stream: BinaryIO, column: str) -> Iterator[Row]:
    if kind == ".jsonl":
        return json_line_rows(path, stream)
    if kind == ".json":
        return json_rows(path, stream)
    return csv_rows(path, stream, column, "," if kind == ".csv" else "\t")
