"""Lists of what a server has, as tables or as JSON."""

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from api.cli.arguments import add_json_argument
from api.cli.environment import add_server_arguments, positive_int
from api.plan_schemas import Plan
from api.schemas import Job

Item = TypeVar("Item", Job, Plan)


def add_list_arguments(parser: argparse.ArgumentParser, states: Sequence[str]) -> None:
    """Which of them, of which server, and in which form."""
    parser.add_argument("--state", choices=states, help="only these")
    parser.add_argument("--limit", type=positive_int, default=50, metavar="N", help="at most so many; default: 50")
    add_server_arguments(parser)
    add_json_argument(parser)


def print_list(
    found: Sequence[Item], what: str, header: str, line: Callable[[Item], str], arguments: argparse.Namespace
) -> None:
    """Print them, and below a table once what is to be said of any of them.

    Args:
        found: those to print.
        what: they are, in the plural.
        header: of the table.
        line: of one in the table.
        arguments: as :func:`add_list_arguments` has them.
    """
    if arguments.json:
        print(json.dumps([item.model_dump(mode="json") for item in found]))
        return
    if not found:
        print(f"no {what}" if arguments.state is None else f"no {arguments.state} {what}")
        return
    print(header)
    for item in found:
        print(line(item))
    for note in dict.fromkeys(item.note for item in found if item.note):
        print(f"note: {note}")


def age(since: datetime) -> str:
    """How long ago, in one number."""
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
