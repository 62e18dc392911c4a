"""Reads JSON documents with one-line errors, and writes them atomically."""

import contextlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factor_search.files.atomic import write_text
from factor_search.files.reading import checked
from factor_search.files.regular import read_regular

MOST_COMPLAINTS = 50
LARGEST_JSON = 2**25
"""Bytes of a JSON file that is read whole; as Python values it takes up to twenty times that."""


def read_json(
    file: Path,
    error_type: type[Exception],
    *,
    most_bytes: int = LARGEST_JSON,
    model: bool = False,
    own: bool = False,
) -> Any:
    """Parse a JSON file.

    Args:
        file: what to read.
        error_type: of what is raised.
        most_bytes: that the file may have.
        model: whether it belongs to a model.
        own: whether this program wrote it, under a name that no specification gives: then it may be read anywhere.

    Raises:
        error_type: the file is not a regular one, cannot be read, is larger than ``most_bytes`` or is not JSON; the
            message is one line and names the file.
    """
    with checked() if own else contextlib.nullcontext():
        content = read_regular(file, error_type, most_bytes, model=model)
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError:
        raise error_type(f"{file} is not UTF-8 text") from None
    except RecursionError:
        raise error_type(f"{file} is nested too deeply") from None
    except ValueError as error:
        raise error_type(f"{file} is not JSON: {error}") from None


def explain(error: ValidationError) -> str:
    """Join pydantic's validation errors into one line, each with the key it is about."""
    items = error.errors(include_url=False, include_input=False)
    complaints = []
    for item in items[:MOST_COMPLAINTS]:
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        complaints.append(f"{place}: {message}")
    more = len(items) - MOST_COMPLAINTS
    return "; ".join(complaints) + (f"; and {more:,} more" if more > 0 else "")


def write_json(file: Path, content: Any, *, finite: bool = True) -> None:
    """Write indented JSON atomically.

    Args:
        file: the destination.
        content: anything that JSON can hold.
        finite: False writes infinity and NaN as Python does, for documents of others that have them.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=not finite) + "\n")
