"""The ``factor-search`` command: one module for each of its words."""

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from factor_search.errors import FactorSearchError, one_line
from factor_search.version import __version__

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every failure is one line on standard error and a non-zero exit status."""
    debug = bool(os.environ.get("FACTOR_SEARCH_DEBUG"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        warnings.simplefilter("ignore")  # third parties' deprecations are not the user's business
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        parsed = build_parser(given[0] if given else None).parse_args(given)
        return int(parsed.run(parsed))
    except FactorSearchError as error:
        if debug:
            traceback.print_exc()
        print(f"factor-search: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("factor-search: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone
        return 1
    except Exception as error:
        if debug:
            raise
        print(
            f"factor-search: internal error: {type(error).__name__}: {one_line(error)} "
            "(FACTOR_SEARCH_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        return 1


MODULES = {
    "demo": "demo",
    "run": "run",
    "evaluate": "evaluate",
    "inspect": "inspect",
    "methods": "methods",
    "export": "export",
    "serve": "serve",
    "submit": "submit",
    "jobs": "jobs",
    "plans": "plans",
    "watch": "watch",
    "pause": "control",
    "resume": "control",
    "cancel": "control",
    "hand-in": "retry",
    "retry": "retry",
    "download": "download",
    "keys": "keys",
    "doctor": "doctor",
}
"""The module of each word, in the order of the help."""


def build_parser(word: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line, or only of what one word needs: some modules take seconds to import."""
    parser = argparse.ArgumentParser(
        prog="factor-search",
        description="Find non-uniform RoPE rescale factors that extend a language model's context window.",
    )
    parser.add_argument("--version", action="version", version=f"factor-search {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in dict.fromkeys([MODULES[word]] if word in MODULES else MODULES.values()):
        importlib.import_module(f"api.cli.{module}").add_parser(commands)
    return parser
