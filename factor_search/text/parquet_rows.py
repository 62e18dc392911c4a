"""Reads the rows of parquet files with memory for one page of a column, or a few, at a time."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factor_search.errors import DataError, one_line
from factor_search.text.formats import NEEDS_EXTRA
from factor_search.text.parquet_pages import largest_page
from factor_search.text.rows import Row, no_column

LARGEST_FOOTER = 2**25
"""Bytes of the description of the columns."""
LARGEST_PAGE = 2**28
"""Bytes of a page, decompressed: a page is read whole."""
BATCH_BYTES = 2**26
"""Bytes that a batch of rows may have; a row of a larger page is a batch."""
BATCH_ROWS = 64


def parquet_rows(path: Path, file: io.BufferedReader, column: str) -> Iterator[Row]:
    """Iterate over the rows of one column.

    Raises:
        DataError: the file is not parquet, broken, or has a page that is too large; there is no such column, or it
            does not hold text.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(NEEDS_EXTRA.format(what=path, package="pyarrow")) from None
    _check_footer(path, file)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:
            leaf = _leaf(path, table, column)
            for group in range(table.num_row_groups):
                about = table.metadata.row_group(group)
                largest = largest_page(file, about.column(leaf)) if about.num_rows else 0
                if largest > LARGEST_PAGE:
                    raise DataError(
                        f"{path}: row group {group} has a page of {largest / 2**20:.0f} MiB in column {column!r}, more "
                        f"than {LARGEST_PAGE // 2**20} MiB: write it with smaller pages or shorter documents"
                    )
                rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))
                for batch in table.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
                    for value in batch.column(column):
                        yield Row(number, f"{path} row {number + 1}", {column: value.as_py()})
                        number += 1
    except DataError:
        raise
    except Exception as error:  # whatever the reader raises on a broken file
        raise DataError(f"cannot read {path} as parquet: {one_line(error)}") from None


def _check_footer(path: Path, file: io.BufferedReader) -> None:
    """Refuse a file whose end is not that of a parquet file of a sensible size, before anything is read by it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    if size < 12 or end[4:] not in (b"PAR1", b"PARE"):
        raise DataError(f"cannot read {path} as parquet: it does not end as such a file does")
    if (footer := int.from_bytes(end[:4], "little")) > LARGEST_FOOTER:
        raise DataError(
            f"cannot read {path} as parquet: the description of its columns has {footer} bytes, more than "
            f"{LARGEST_FOOTER // 2**20} MiB"
        )


def _leaf(path: Path, table: Any, column: str) -> int:
    """Return the place of a column of text among all columns."""
    from pyarrow import types

    schema = table.schema_arrow
    if column not in schema.names:
        raise DataError(no_column(str(path), column, schema.names))
    if schema.names.count(column) > 1:
        raise DataError(f"{path} has several columns {column!r}: rename them")
    kind = schema.field(column).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    readable = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(is_kind(values) for is_kind in readable):
        raise DataError(f"{path}: column {column!r} holds {str(kind)[:60]}, not text")
    parquet = table.schema
    return next(leaf for leaf in range(len(parquet)) if parquet.column(leaf).path == column)
