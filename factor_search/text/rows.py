"""Reads the rows of JSON lines, JSON and CSV one after another, each with its place for error messages."""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from factor_search.errors import DataError
from factor_search.text.formats import LONGEST_DOCUMENT, LONGEST_LINE, lines_of, not_utf8, too_long

MOST_VALUES = 2**24
"""Values in one row of JSON: each takes up to 64 bytes of memory."""
CHUNK = 2**20
"""Bytes of a JSON file that are read at once, if its values are shorter."""
SURROGATE = re.compile("[\ud800-\udfff]")
SHOWN = 8
"""Names of columns in a message."""


@dataclass(frozen=True)
class Document:
    """One text and its source."""

    source: str
    """A path, followed by ``#n`` where a file contains several documents."""
    text: str


class Row(NamedTuple):
    """A row of a table of documents."""

    number: int
    """Its number in :attr:`Document.source`."""
    place: str
    """The file, and the line or row that a user finds it at."""
    value: Any


def document_of_row(source: str, row: Any, column: str, *, place: str | None = None) -> Document:
    """Return the text of a row; a null is an empty text, and half of a surrogate pair becomes U+FFFD.

    Args:
        source: of the document.
        row: a dictionary.
        column: the key of the text.
        place: names the row in errors; None is the source.

    Raises:
        DataError: there is no such column, it does not hold text, or the text is too long.
    """
    place = place or source
    if not isinstance(row, dict):
        raise DataError(f"{place} has no column {column!r}, only {type(row).__name__}: rows must be objects")
    if column not in row:
        raise DataError(no_column(place, column, list(row)))
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        raise DataError(f"{place}: column {column!r} holds {type(text).__name__}, not text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        text = SURROGATE.sub("\ufffd", text)
        size = len(text.encode())
    if size > LONGEST_DOCUMENT:
        raise DataError(f"{place} is longer than {LONGEST_DOCUMENT // 2**20} MiB, the longest document")
    return Document(source, text)


def no_column(place: str, column: str, found: Sequence[str]) -> str:
    """Say which columns there are instead of the one that is needed."""
    names = [name if name.isprintable() and len(name) <= 40 else f"{name[:40]!r}..." for name in found[:SHOWN]]
    more = ", ..." if len(found) > SHOWN else ""
    return f"{place} has no column {column!r}, only {', '.join(names)}{more}: set data.column"


def json_line_rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """Iterate over JSON lines; blank lines are skipped, but counted.

    Raises:
        DataError: a line is not JSON, not UTF-8 or too long; names the line.
    """
    for number, line in lines_of(path, stream):
        if line.strip():
            place = f"{path} line {number}"
            _check_number_of_values(line, place)
            try:
                yield Row(number - 1, place, DECODER.decode(line))
            except (ValueError, RecursionError) as error:
                raise DataError(_not_json(place, error)) from None


def json_rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """Iterate over the elements of a JSON array, or over JSON values that follow each other, as lines or not.

    An element that is a string is returned as it is.

    Raises:
        DataError: the file is not JSON, not UTF-8, or an element is too long; names the line.
    """
    values = _JsonValues(path, stream)
    in_array = values.take("[")
    number = 0
    if in_array and values.take("]"):
        in_array = False
    while in_array or values.left():
        place = f"{path} line {values.line}"
        yield Row(number, place, values.next())
        number += 1
        if in_array and not values.take(","):
            in_array = not values.take("]", required=True)
            if not in_array and values.left():
                raise DataError(f"{path} line {values.line} is not JSON: there is something behind the array")


def csv_rows(path: Path, stream: BinaryIO, column: str, delimiter: str) -> Iterator[Row]:
    """Iterate over the rows of a table whose first row names the columns; cells may be quoted, and hold line breaks.

    Raises:
        DataError: there is no such column, the table is malformed, or a row is too long or has too many or few cells;
            names the line.
    """
    csv.field_size_limit(LONGEST_LINE)  # of this process; the default is too short for documents
    line = size = number = 0

    def lines() -> Iterator[str]:
        nonlocal line, size
        for line, text in lines_of(path, stream):
            size += len(text)
            if size > LONGEST_LINE:
                raise DataError(too_long(f"{path} line {line}"))
            yield text

    try:
        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        names = next(reader, None)
        if names is not None and column not in names:
            raise DataError(no_column(f"{path}: the first row, which names the columns,", column, names))
        begin, size = line + 1, 0
        for cells in reader:
            if cells:
                if len(cells) != len(names or ()):
                    raise DataError(f"{path} line {begin} has {len(cells)} cells, but the first row {len(names or ())}")
                yield Row(number, f"{path} line {begin}", dict(zip(names or (), cells, strict=True)))
                number += 1
            begin, size = line + 1, 0
    except csv.Error as error:
        raise DataError(f"{path} line {line} is not a row of a table: {error}") from None


class _JsonValues:
    """JSON values in a stream, of which only one at a time is in memory."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False
        self._later, self._taken = "", 0  # what was read with a long value and follows it; its beginning was taken
        self.line = 1
        """Of the next value."""

    def left(self) -> bool:
        """Skip white space, and return whether anything is left."""
        while True:
            found = NOT_SPACE.search(self._text, self._at)
            self._advance(found.start() if found else len(self._text))
            if found or not self._read_on():
                return found is not None

    def take(self, mark: str, *, required: bool = False) -> bool:
        """Skip white space, and a mark if it comes next."""
        if self.left() and self._text[self._at] == mark:
            self._advance(self._at + 1)
            return True
        if required:
            found = repr(self._text[self._at]) if self._at < len(self._text) else "the end of the file"
            raise DataError(f"{self._path} line {self.line} is not JSON: expected ',' or {mark!r}, not {found}")
        return False

    def next(self) -> Any:
        """Return the next value."""
        self.left()
        place = f"{self._path} line {self.line}"
        while True:
            left = len(self._text) - self._at
            if left > LONGEST_LINE:
                raise DataError(too_long(place))
            if left > MOST_VALUES:
                _check_number_of_values(self._text[self._at :], place)
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos + LONGEST_WORD > len(self._text)
                if not cut_off or not self._read_on():
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise DataError(f"{self._path} line {line} is not JSON: {error.msg}") from None
            except RecursionError as error:
                raise DataError(_not_json(place, error)) from None
            else:
                if end < len(self._text) or not self._read_on():  # a number may continue
                    self._advance(end)
                    return value

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to
        later = len(self._text) - to - CHUNK
        if later > CHUNK and (self._taken >= later or self._taken == len(self._later)):
            if self._taken >= later:
                self._taken -= later
            else:
                self._later, self._taken = self._text[to + CHUNK :], 0
            self._text, self._at = self._text[to : to + CHUNK], 0

    def _read_on(self) -> bool:
        """Read about as much as there is, so that a long value is tried few times."""
        kept = self._text[self._at :]
        if self._taken < len(self._later):
            more = self._later[self._taken : self._taken + max(CHUNK, len(kept))]
            self._text, self._at, self._taken = kept + more, 0, self._taken + len(more)
            return True
        if self._ended:
            return False
        self._later, self._taken = "", 0
        piece = self._stream.read(max(CHUNK, len(kept)))
        self._ended = not piece
        try:
            self._text, self._at = kept + self._decode.decode(piece, final=self._ended), 0
        except UnicodeDecodeError as error:
            line = self.line + kept.count("\n") + error.object[: error.start].count(b"\n")
            raise DataError(f"{self._path} line {line} {not_utf8(error)}") from None
        return True


NOT_SPACE = re.compile(r"[^ \t\r\n]")
MARKS = re.compile(r'\\.|[]["{},]', re.DOTALL)
LONGEST_WORD = 16
"""Characters of ``-Infinity`` or an escaped pair: an error further from the end is a true one."""
DECODER = json.JSONDecoder(
    # Numbers are never used. They may be larger than Python reads, and NaN.
    parse_int=lambda text: 0,
    parse_float=lambda text: 0.0,
    parse_constant=lambda text: 0.0,
)


def _check_number_of_values(text: str, place: str) -> None:
    few = len(text) <= MOST_VALUES or sum(text.count(mark) for mark in ",[{") <= MOST_VALUES
    if not few and _values_in_first(text) > MOST_VALUES:
        raise DataError(f"{place} has more than {MOST_VALUES} values, the most that are read as one row")


def _values_in_first(text: str) -> int:
    """How many values the first value of a JSON text has, as far as there is text; more than allowed is not counted."""
    count, depth, quoted = 0, 0, False
    for found in MARKS.finditer(text):
        mark = found.group()
        if mark == '"':
            quoted = not quoted
        elif not quoted and mark in ",[{":
            count += 1
            depth += mark != ","
        elif not quoted and mark in "]}":
            depth -= 1
        if count > MOST_VALUES or (depth <= 0 and not quoted):
            break
    return count


def _not_json(place: str, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{place} is not JSON: {error.msg} at column {error.colno}"
    return f"{place} is not JSON that can be read: it is nested too deeply"
