"""Reads files that may hold factors: JSON, CSV and .npy, with one-line errors."""

import re
from pathlib import Path
from typing import Any

from factor_search.errors import FactorsError
from factor_search.files.json_documents import read_json
from factor_search.files.regular import open_regular, read_regular, require_regular

ACCEPTED = (
    "a model folder, a hub id or a GGUF file; a config.json; a factors.json; a JSON table with rescale_factors or "
    "long_factor; or a list of numbers as JSON, CSV or .npy"
)
LARGEST = 1e30
"""Of all numbers: larger ones are not meant, and some do not fit into a float."""
LARGEST_BYTES = 2**24


def document_of(source: Any) -> Any:
    """Return the content of a file; what is not the name of one is the content already.

    Raises:
        FactorsError: the file cannot be read.
    """
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    require_regular(path, FactorsError)
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise FactorsError(f"{path} has more than {LARGEST_BYTES // 2**20} MiB: factors are read from {ACCEPTED}")
        if path.suffix == ".npy":
            return _numpy_array(path)
        if path.suffix in (".csv", ".txt"):
            return _rows(path)
    except OSError as error:
        raise FactorsError(f"cannot read {path}: {error.strerror or error}") from None
    return read_json(path, FactorsError)


def vector(content: Any, name: str) -> list[float]:
    """Return a list of numbers; of rows that are equal, as LongRoPE has one for each layer, the first.

    Raises:
        FactorsError: it is something else.
    """
    rows = content if isinstance(content, list | tuple) else None
    if rows and all(isinstance(row, list | tuple) for row in rows):
        if all(len(row) == 1 for row in rows):  # a column
            rows = [[row[0] for row in rows]]
        if any(row != rows[0] for row in rows):
            raise FactorsError(f"{name} has different factors for each layer, which no model here can be given")
        rows = rows[0]
    if not rows:
        raise FactorsError(f"{name} holds no factors: they are read from {ACCEPTED}")
    for i, value in enumerate(rows):
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
            raise FactorsError(f"{name}: factor {i} is {value!r:.40}, not a number above 0")
    return [float(value) for value in rows]


def number(value: Any, key: str, name: str) -> float | None:
    """Return a number above 0, or None for nothing.

    Raises:
        FactorsError: it is something else; names the key and the file.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
        raise FactorsError(f"{name}: {key} is {value!r:.40}, not a number above 0")
    return float(value)


def tokens(value: Any, key: str, name: str) -> int | None:
    """Return a number of tokens, or None for nothing.

    Raises:
        FactorsError: it is something else; names the key and the file.
    """
    found = number(value, key, name)
    if found is None or found.is_integer():
        return None if found is None else int(found)
    raise FactorsError(f"{name}: {key} is {value!r:.40}, not a whole number of tokens")


def _numpy_array(file: Path) -> Any:
    import numpy as np

    try:
        with open_regular(file, FactorsError) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False).tolist()
    except (ValueError, EOFError, MemoryError) as error:
        raise FactorsError(f"{file} is not a .npy file of numbers: {error}") from None


def _rows(file: Path) -> list[list[float]]:
    """Return the numbers of a text file by line; commas, semicolons and spaces separate them."""
    try:
        lines = read_regular(file, FactorsError, LARGEST_BYTES).decode().splitlines()
        rows = [[float(cell) for cell in re.split(r"[\s,;]+", line.strip(" \t,;")) if cell] for line in lines]
    except UnicodeDecodeError:
        raise FactorsError(f"{file} is not UTF-8 text") from None
    except ValueError as error:
        raise FactorsError(f"{file} has something other than numbers: {error}") from None
    return [row for row in rows if row]
