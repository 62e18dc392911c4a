"""Arguments that can also be given by environment variables, each named in its help."""

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
    """Add an argument whose default is taken from the environment."""
    variable = variable_of(flag)
    given = os.environ.get(variable)
    if given:  # argparse converts and checks a default that is text; only the choices it does not
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
    """What the variable of a switch says, None if it is not set.

    Raises:
        SpecError: it says neither yes nor no.
    """
    variable = variable_of(flag)
    given = os.environ.get(variable, "").strip().lower()
    if not given:
        return None
    if given not in TRUE + FALSE:
        raise SpecError(f"{variable} is {given!r}: it must be 1 or 0")
    return given in TRUE


def add_database_argument(parser: argparse.ArgumentParser) -> None:
    """``--database``."""
    add_variable_argument(
        parser,
        "--database",
        metavar="URL",
        default=DEFAULT_DATABASE,
        help="sqlite:///file.db or postgresql://user:password@host/name",
    )


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """``--url``: which server a command talks to."""
    add_variable_argument(
        parser,
        "--url",
        metavar="URL",
        help="of the server (default: http://127.0.0.1:8400); a key is taken from $FACTOR_SEARCH_KEY",
    )


def positive_int(text: str) -> int:
    """An argument that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 0 < value < 2**53:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def positive_float(text: str) -> float:
    """An argument that measures something."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 2**53:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
