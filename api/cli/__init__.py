"""The ``factor-search`` command line; each command has a module, imported only when that command is given."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TextIO, cast

from api.cli.commands import COMMANDS, check_installed
from factor_search.errors import FactorSearchError, one_line
from factor_search.files.atomic import FULL
from factor_search.version import __version__
from factor_search.visible import VisibleStream, masked, visible

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every failure is one line on standard error and a non-zero exit status.

    Whatever a command prints, names of others in it cannot steer the terminal.
    """
    with (
        contextlib.redirect_stdout(cast(TextIO, VisibleStream(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, VisibleStream(sys.stderr))),
    ):
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    debug = bool(os.environ.get("FACTOR_SEARCH_DEBUG"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        warnings.simplefilter("ignore")  # deprecations in third-party packages do not concern the user
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        parsed = build_parser(given[0] if given else None).parse_args(given)
        with _signals_as_interrupts():
            status = int(parsed.run(parsed))
        sys.stdout.flush()  # here a full disk is an error with a message
        return status
    except FactorSearchError as error:
        if debug:
            traceback.print_exc()
        print(f"factor-search: error: {visible(masked(str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("factor-search: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output is gone
        return 1
    except Exception as error:
        if _was_interrupted(error):
            print("factor-search: interrupted", file=sys.stderr)
            return INTERRUPTED
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            where = f" {error.filename}" if error.filename else ""
            print(f"factor-search: error: cannot write{where}: {error.strerror}: free some space", file=sys.stderr)
            return 1
        print(
            f"factor-search: internal error: {type(error).__name__}: {one_line(error)} "
            "(set FACTOR_SEARCH_DEBUG=1 to see where)",
            file=sys.stderr,
        )
        return 1


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an interruption led to the error: cleaning up in a library, half-way through its start, can fail."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, so that it ends what it has started; nohup stays in force."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser: every command with its summary, and the arguments of the given one, whose module is imported.

    Raises:
        NotInstalledError: the command needs packages that are not installed.
    """
    parser = argparse.ArgumentParser(
        prog="factor-search",
        description="Find non-uniform RoPE rescale factors that extend a language model's context window.",
        epilog="factor-search COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"factor-search {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, entry in COMMANDS.items():
        sentence = f"{entry.summary[0].upper()}{entry.summary[1:]}."
        of_command = commands.add_parser(name, help=entry.summary, description=sentence)
        of_command.set_defaults(command=name, usage_error=of_command.error)
        if name == command:
            check_installed(name)
            importlib.import_module(f"api.cli.{entry.module}").configure(of_command)
    return parser
