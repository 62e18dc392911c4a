"""Measures the pages of a parquet column by their headers, which say more than the file's own description.

A description may be wrong, and does not show that one value of many is huge. Header format: thrift's compact protocol,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md, and the struct PageHeader in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

import io
from typing import Any

HEADER = 2**16
"""Bytes that are read for a header; readers allow it smallest and largest values, of 16 MiB in all."""
LONGEST_HEADER = 2**24
DEEPEST = 16

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
UNCOMPRESSED_SIZE, COMPRESSED_SIZE = 2, 3


def largest_page(file: io.BufferedReader, chunk: Any) -> int:
    """Return the bytes of the largest page of a column chunk, decompressed.

    Args:
        file: the parquet file; its position is kept.
        chunk: ``pyarrow.parquet.ColumnChunkMetaData``.

    Raises:
        ValueError: a header is malformed.
    """
    before = file.tell()
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end, largest = at + chunk.total_compressed_size, 0
    try:
        while at < end:
            sizes, length = _header(file, at)
            largest = max(largest, sizes[UNCOMPRESSED_SIZE])
            at += length + sizes[COMPRESSED_SIZE]
    finally:
        file.seek(before)
    return largest


def _header(file: io.BufferedReader, at: int) -> tuple[dict[int, int], int]:
    """Return the whole numbers in a page header by their field, and the header's length."""
    for size in (HEADER, LONGEST_HEADER):
        file.seek(at)
        parser = _Compact(file.read(size))
        try:
            sizes = parser.struct(0)
        except IndexError:
            continue
        if min(sizes.get(UNCOMPRESSED_SIZE, -1), sizes.get(COMPRESSED_SIZE, -1)) < 0:
            break
        return sizes, parser.at
    raise ValueError(f"the page header at byte {at} is malformed")


class _Compact:
    """Reads thrift's compact protocol as far as to find where a struct ends."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self, depth: int) -> dict[int, int]:
        """Skip a struct, and return its whole numbers by field."""
        if depth > DEEPEST:
            raise ValueError("a page header is nested too deeply")
        found: dict[int, int] = {}
        field = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else self._signed()
            value = self._value(kind, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> int | None:
        if kind in (TRUE, FALSE):
            return None
        if kind in (I16, I32, I64):
            return self._signed()
        if kind == STRUCT:
            self.struct(depth + 1)
        elif kind in (LIST, SET):
            self._list(depth)
        elif kind in (BYTE, DOUBLE, BINARY):
            self._skip({BYTE: 1, DOUBLE: 8}.get(kind) or self._unsigned())
        else:
            raise ValueError(f"a page header holds a field of type {kind}")
        return None

    def _list(self, depth: int) -> None:
        head = self._byte()
        count, kind = head >> 4, head & 15
        for _ in range(self._unsigned() if count == 15 else count):
            self._skip(1) if kind in (TRUE, FALSE) else self._value(kind, depth + 1)

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._content):
            raise IndexError

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a page header holds a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
