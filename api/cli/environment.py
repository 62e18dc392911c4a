"""Options that can also be given by environment variables, each named in its help."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from factor_search.errors import SpecError

PREFIX = "FACTOR_SEARCH_"
DEFAULT_DATABASE = "sqlite:///factor-search.db"
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def variable_of(flag: str) -> str:
    """The variable of a flag: ``FACTOR_SEARCH_PORT`` of ``--port``."""
    return PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def add_variable_argument(
    parser: argparse.ArgumentParser,
    flag: str,
    *,
    help: str,
    type: Callable[[str], Any] = str,
    default: Any = None,
    metavar: str | None = None,
    choices: list[str] | None = None,
) -> None:
    """Add an option whose default is read from the environment."""
    variable = variable_of(flag)
    given = os.environ.get(variable)
    if (
        given
    ):  # argparse converts a default that is text, but does not check its choices, and exits with its own message
        if choices is not None and given not in choices:
            raise SpecError(f"{variable} is {given!r}: it must be one of {', '.join(choices)}")
        try:
            default = type(given)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise SpecError(f"{variable} is {given!r}: {error}") from None
    shown = "" if default in (None, "") or given else f"; default: {default}"
    parser.add_argument(
        flag, type=type, default=default, metavar=metavar, choices=choices, help=f"{help}{shown} [${variable}]"
    )


def truth_from(flag: str) -> bool | None:
    """The value of a switch's variable, None if it is not set.

    Raises:
        SpecError: it is neither a yes nor a no.
    """
    variable = variable_of(flag)
    given = os.environ.get(variable, "").strip().lower()
    if not given:
        return None
    if given not in TRUE + FALSE:
        raise SpecError(f"{variable} is {given!r}: it must be 1 or 0")
    return given in TRUE


def add_database_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--database``."""
    add_variable_argument(
        parser,
        "--database",
        metavar="URL",
        default=DEFAULT_DATABASE,
        help="sqlite:///file.db or postgresql://user:password@host/name",
    )


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--url``, the server a command talks to."""
    add_variable_argument(
        parser,
        "--url",
        metavar="URL",
        help="address of the server (default: http://127.0.0.1:8400); a key is read from $FACTOR_SEARCH_KEY",
    )


def positive_int(text: str) -> int:
    """The value of an option that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 0 < value < 2**53:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def positive_float(text: str) -> float:
    """The value of an option that measures something."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 2**53:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
