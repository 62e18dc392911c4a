"""JSON documents: read with errors of one line, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factor_search.errors import OutputError
from factor_search.files.atomic import write_atomically


def read_json(file: Path, error_type: type[Exception]) -> Any:
    """Parse a JSON file; any failure becomes one line naming the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise error_type(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise error_type(f"{file} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise error_type(f"{file} is not JSON: {error}") from None


def explain(error: ValidationError) -> str:
    """All of pydantic's complaints on one line, each with its place."""
    complaints = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        complaints.append(f"{place}: {message}")
    return "; ".join(complaints)


def write_json(file: Path, content: Any) -> None:
    """Write JSON for people and machines, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(file, text.encode(), required=True)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from None
