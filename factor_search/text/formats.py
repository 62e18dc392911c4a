"""Recognises the formats of documents' files by the endings of their names, and opens the files decompressed."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from factor_search.errors import DataError, one_line

NEEDS_EXTRA = "reading {what} needs the package {package}: pip install 'factor-search[data]'"

LONGEST_DOCUMENT = 2**27
"""Bytes of one document as UTF-8: more than 30 million tokens of a usual tokenizer."""
LONGEST_LINE = 2 * LONGEST_DOCUMENT
"""Bytes of one line, or of one row, which may write characters as escapes and may have other columns."""
ALWAYS_EXPANDED = 2**30
"""Bytes that any compressed file may hold."""
MOST_EXPANDED = 200
"""Times its own size that a compressed file may hold beyond that."""

TABLES = {".jsonl": ".jsonl", ".ndjson": ".jsonl", ".json": ".json", ".csv": ".csv", ".tsv": ".tsv"}
"""Formats with several documents by the ending of the name; they may also be compressed."""
COMPRESSED = (".gz", ".zst")

EXTRACT, UNPACK = "extract its text to a .txt or .jsonl file", "unpack it and name its files"
CONVERT, RECOMPRESS = "convert it to parquet or JSON lines", "unpack it, or compress it as .gz or .zst"
REFUSED = {
    **dict.fromkeys((".pdf", ".epub", ".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".djvu"), EXTRACT),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".mhtml"), f"its markup would be measured: {EXTRACT}"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), UNPACK),
    **dict.fromkeys((".bz2", ".xz", ".lzma", ".lz4", ".br", ".z"), RECOMPRESS),
    **dict.fromkeys((".feather", ".orc", ".avro", ".xls", ".xlsx", ".ods", ".pkl", ".pickle"), CONVERT),
    ".arrow": "name the folder of the saved data set, or convert it to parquet or JSON lines",
}
"""What to do with a file that is not read, by the ending of its name. Other endings are read as text."""

BEGINNINGS = {
    b"\x1f\x8b": "compressed with gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: let its name end in .zst",
    b"PK\x03\x04": f"a zip archive or an office document: {UNPACK}, or {EXTRACT}",
    b"%PDF-": f"a PDF: {EXTRACT}",
    b"\xff\xfe": "UTF-16: convert it to UTF-8",
    b"\xfe\xff": "UTF-16: convert it to UTF-8",
    b"PAR1": "parquet: let its name end in .parquet",
}
"""What a file with such first bytes is, whatever its name says."""


def format_of(path: Path) -> tuple[str, str]:
    """Return a file's format and its compression by the endings of its name, in any letter case.

    Returns:
        ``.parquet``, a value of ``TABLES``, or ``.txt`` for all else; and ``.gz``, ``.zst`` or nothing.

    Raises:
        DataError: files with such an ending are not read; says what to do.
    """
    name, compression = path, ""
    if path.suffix.lower() in COMPRESSED:
        compression, name = path.suffix.lower(), path.with_suffix("")
    ending = name.suffix.lower()
    if ending in REFUSED:
        raise DataError(f"{path}: files that end in {ending} are not read: {REFUSED[ending]}")
    if ending == ".parquet":
        if compression:
            raise DataError(f"{path}: parquet files are compressed inside: unpack it")
        return ending, ""
    return TABLES.get(ending, ".txt"), compression


def decompressed(path: Path, file: io.BufferedReader, compression: str) -> "io.BufferedReader[Any]":
    """Return a stream of what a file holds, decompressed while it is read.

    Raises:
        DataError: it begins like another format, or with binary data; also while reading: it is broken, or expands
            beyond the limits.
    """
    stream: io.BufferedReader[Any] = (
        io.BufferedReader(_Expanded(path, file, compression), 2**18) if compression else file
    )
    head = stream.peek(512)[:512]
    for beginning, what in BEGINNINGS.items():
        if head.startswith(beginning):
            raise DataError(f"{path} is {what}")
    if b"\0" in head:
        raise DataError(f"{path} holds binary data, not text")
    return stream


def read_text(path: Path, stream: BinaryIO) -> str:
    """Return all text of a stream.

    Raises:
        DataError: it is longer than ``LONGEST_DOCUMENT``, or not UTF-8.
    """
    content = stream.read(LONGEST_DOCUMENT + 1)
    if len(content) > LONGEST_DOCUMENT:
        raise DataError(
            f"{path} is longer than {LONGEST_DOCUMENT // 2**20} MiB, the longest document: split it into several files"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} {not_utf8(error)}") from None


def lines_of(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Iterate over the lines of a stream with their numbers from 1 on; the byte order mark is left out.

    Raises:
        DataError: a line is longer than ``LONGEST_LINE``, or not UTF-8; names the line.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(too_long(f"{path} line {number}"))
        try:
            text = line.decode("utf-8" if number > 1 else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} line {number} {not_utf8(error)}") from None
        yield number, text


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say which byte is wrong."""
    return f"is not UTF-8 text: byte 0x{error.object[error.start]:02x} at position {error.start}"


def too_long(place: str) -> str:
    """Say that a row is longer than allowed."""
    return f"{place} is longer than {LONGEST_LINE // 2**20} MiB, the most that is read as one row"


class _Expanded(io.RawIOBase):
    """Reads what a compressed file holds, and refuses one that holds too much for its size."""

    def __init__(self, path: Path, file: BinaryIO, compression: str) -> None:
        self._path, self._file = path, file
        self._expanded = 0
        self._stream: Any = gzip.GzipFile(fileobj=file) if compression == ".gz" else _zstd(path, file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot decompress {self._path}: {one_line(error)}") from None
        self._expanded += len(piece)
        if self._expanded > max(ALWAYS_EXPANDED, MOST_EXPANDED * self._file.tell()):
            raise DataError(
                f"{self._path} holds more than {ALWAYS_EXPANDED // 2**30} GiB and more than {MOST_EXPANDED} times its "
                "size, which text does not: unpack it if it is one"
            )
        buffer[: len(piece)] = piece
        return len(piece)


def _zstd(path: Path, file: BinaryIO) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(NEEDS_EXTRA.format(what=path, package="pyarrow")) from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
