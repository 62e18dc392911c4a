"""Reads JSON documents with one-line errors, and writes them atomically."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factor_search.files.atomic import write_text


def read_json(file: Path, error_type: type[Exception], *, most_bytes: int | None = None) -> Any:
    """Parse a JSON file.

    Args:
        file: what to read.
        error_type: of what is raised.
        most_bytes: of a file from outside, which must be a regular one; None has no limit.

    Raises:
        error_type: the file cannot be read or is not JSON; the message is one line and names the file.
    """
    try:
        if most_bytes is not None and file.exists():
            if not file.is_file():
                raise error_type(f"{file} is not a regular file")
            if file.stat().st_size > most_bytes:
                raise error_type(f"{file} has more than {most_bytes // 2**20} MiB, so it is another kind of file")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise error_type(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise error_type(f"{file} is not UTF-8 text") from None
    except RecursionError:
        raise error_type(f"{file} is nested too deeply") from None
    except ValueError as error:
        raise error_type(f"{file} is not JSON: {error}") from None


def explain(error: ValidationError) -> str:
    """Join pydantic's validation errors into one line, each with the key it is about."""
    complaints = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        complaints.append(f"{place}: {message}")
    return "; ".join(complaints)


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
