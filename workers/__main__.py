"""``python -m workers``: a coordinator of its own process, started and watched over by ``factor-search serve``."""

import argparse
import contextlib
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from factor_search.errors import FactorSearchError
from storage.dashboard.projector import command as projector_command
from storage.dashboard.projector import environment as projector_environment
from storage.dashboard.unprojected import catch_up
from storage.database import Database
from workers.coordinator import Coordinator, new_owner
from workers.policy import Policy, add_policy_arguments
from workers.ray_environment import prepare_environment
from workers.supervisor import Supervisor

SWITCH_SECONDS = 0.0005
"""Threads here work for microseconds and wait for each other; Python's own five milliseconds would be felt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a coordinator until a signal, or the end of the process that holds the other end of standard input."""
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=parsed.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        _run(parsed)
    except FactorSearchError as error:
        print(f"coordinator: error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(parsed: argparse.Namespace) -> None:
    prepare_environment(parsed.ray_address)
    from workers.ray_backend import RayBackend  # Ray reads the environment when it is imported

    stop, policy = threading.Event(), Policy.from_arguments(parsed, hub=False)
    with Database(parsed.database) as database:
        backend = RayBackend(
            parsed.ray_address,
            workers=parsed.workers,
            cpus_per_worker=parsed.cpus_per_worker,
            gpus_per_worker=parsed.gpus_per_worker,
        )
        for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has started, which sets handlers of its own
            signal.signal(number, lambda *_: stop.set())
        owner = new_owner()
        shown: Callable[[str], int] = lambda job_id: 0  # noqa: E731
        with contextlib.ExitStack() as stack:
            stack.callback(backend.close)
            if parsed.dashboard_database is not None:
                stack.enter_context(projector(parsed.database, parsed.dashboard_database, owner))
                shown = partial(catch_up, database, stage=0, seconds=0.5)
            coordinator = Coordinator(
                database,
                backend,
                policy=policy,
                jobs=parsed.jobs,
                lease_seconds=parsed.lease_seconds,
                evaluation_timeout=parsed.evaluation_timeout,
                owner=owner,
                unprojected=shown,
            )
            _stop_when(stop, coordinator.shut_down)
            if stat.S_ISFIFO(os.fstat(0).st_mode):
                _stop_at_end_of_input(stop)
            capacity = backend.capacity()
            print(f"coordinator ready: {owner}, room for {capacity.workers} workers", flush=True)
            coordinator.run()


def projector(database_url: str, dashboard_url: str, owner: str) -> Supervisor:
    """The process that keeps the dashboard's tables up to date, kept running.

    The addresses go by its environment, since others can read a process's arguments.
    """
    environment = projector_environment(database_url, dashboard_url)
    return Supervisor(projector_command(owner), name="projector", environment=environment)


def _stop_when(stop: threading.Event, shut_down: Callable[[], None]) -> None:
    def wait() -> None:
        stop.wait()
        shut_down()

    threading.Thread(target=wait, name="stop", daemon=True).start()


def _stop_at_end_of_input(stop: threading.Event) -> None:
    """Whoever started us holds the other end of the pipe; its end means that it has died."""

    def wait() -> None:
        while os.read(0, 1024):  # unbuffered: a thread that waits in a buffered read breaks the end of Python
            pass
        stop.set()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all settings of a coordinator."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="A coordinator: drives jobs of a database.")
    for name, purpose in (("DATABASE", "where jobs are"), ("DASHBOARD_DATABASE", "where Optuna's tables are, if any")):
        variable = f"FACTOR_SEARCH_{name}"  # others can read a process's arguments, and a URL may hold a password
        given = os.environ.get(variable)
        option = f"--{name.lower().replace('_', '-')}"
        needed = name == "DATABASE" and given is None
        parser.add_argument(option, default=given, required=needed, metavar="URL", help=f"{purpose}; or ${variable}")
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="join this cluster; default: a Ray of our own")
    parser.add_argument("--workers", type=int, metavar="N", help="at most so many; default: as many as fit")
    parser.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="X")
    parser.add_argument("--gpus-per-worker", type=float, metavar="X", help="default: one, where there are GPUs")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="at most so many at once")
    parser.add_argument("--evaluation-timeout", type=float, metavar="SECONDS")
    parser.add_argument("--lease-seconds", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    add_policy_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
