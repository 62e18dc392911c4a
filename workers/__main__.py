"""``python -m workers``: a coordinator in its own process, started and supervised by ``factor-search serve``."""

import argparse
import contextlib
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from factor_search.errors import FactorSearchError
from factor_search.report.tracing import set_up_tracing
from factor_search.visible import FORMATS, LEVELS, masked, set_up_logging, visible
from storage.dashboard.projector import command as projector_command
from storage.dashboard.projector import environment as projector_environment
from storage.dashboard.unprojected import catch_up
from storage.database import Database
from workers.attempts import PREPARE_SECONDS
from workers.coordinator import Coordinator, new_owner
from workers.policy import Policy, add_policy_arguments
from workers.ray_environment import prepare_environment
from workers.supervisor import Supervisor
from workers.webhooks import SECRET_VARIABLE, read_secret

SWITCH_SECONDS = 0.0005
"""Threads of a coordinator run for microseconds between waits; Python's default of 5 ms would delay them."""


STOP_SECONDS = 20.0
"""A coordinator that was told to stop has ended after so long, whatever hangs; ``serve`` waits for 10 s of them."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a coordinator until a signal, or until the process at the other end of standard input ends."""
    parsed = build_parser().parse_args(arguments)
    set_up_logging(parsed.log_level, parsed.log_format)
    set_up_tracing("factor-search-coordinator")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        _run(parsed)
    except FactorSearchError as error:
        print(f"coordinator: error: {visible(masked(str(error)))}", file=sys.stderr)
        return 1
    return 0


def _run(parsed: argparse.Namespace) -> None:
    webhook_secret = read_secret(parsed.webhook_secret_file)  # before anything is started that would inherit it
    prepare_environment(parsed.ray_address)
    from workers.ray_backend import RayBackend  # Ray reads the environment when it is imported

    stop, policy = threading.Event(), Policy.from_arguments(parsed, hub=False)
    policy.close_the_hub()
    with Database(parsed.database) as database:
        backend = RayBackend(
            parsed.ray_address,
            workers=parsed.workers,
            cpus_per_worker=parsed.cpus_per_worker,
            gpus_per_worker=parsed.gpus_per_worker,
            policy=policy,
        )
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
        ):  # after Ray has started, which sets handlers of its own
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: stop.set())
        owner = new_owner()
        shown: Callable[[str], int] = lambda job_id: 0  # noqa: E731
        with contextlib.ExitStack() as stack:
            stack.callback(backend.close)
            if parsed.dashboard_database is not None:
                stack.enter_context(projector(parsed.database, parsed.dashboard_database, owner))
                shown = partial(catch_up, database, seconds=0.5)
            coordinator = Coordinator(
                database,
                backend,
                policy=policy,
                jobs=parsed.jobs,
                lease_seconds=parsed.lease_seconds,
                evaluation_timeout=parsed.evaluation_timeout,
                prepare_seconds=60 * parsed.prepare_minutes,
                owner=owner,
                unprojected=shown,
                webhook_secret=webhook_secret,
            )
            _stop_when(stop, coordinator.shut_down)
            if stat.S_ISFIFO(os.fstat(0).st_mode):
                _stop_at_end_of_input(stop)
            capacity = backend.capacity()
            print(f"coordinator ready: {owner}, room for {capacity.workers} workers", flush=True)
            coordinator.run()


def projector(database_url: str, dashboard_url: str, owner: str) -> Supervisor:
    """The supervised process that keeps the dashboard's tables up to date.

    It receives the URLs in its environment, because other users can read a process's arguments.
    """
    environment = projector_environment(database_url, dashboard_url)
    return Supervisor(projector_command(owner), name="projector", environment=environment)


def _stop_when(stop: threading.Event, shut_down: Callable[[], None]) -> None:
    def wait() -> None:
        stop.wait()
        shut_down()
        time.sleep(STOP_SECONDS)
        logger.error("not stopped within %g s: ended", STOP_SECONDS)
        os._exit(1)  # the kernel ends a private Ray instance with this process

    threading.Thread(target=wait, name="stop", daemon=True).start()


def _stop_at_end_of_input(stop: threading.Event) -> None:
    """Stop at the end of standard input, a pipe whose other end is closed when the parent process dies."""

    def wait() -> None:
        while os.read(0, 1024):  # unbuffered: a thread waiting in a buffered read breaks the exit of Python
            pass
        stop.set()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def build_parser() -> argparse.ArgumentParser:
    """The parser of a coordinator's command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workers", description="Run a coordinator for the jobs of a database."
    )
    databases = {"DATABASE": "database of the jobs", "DASHBOARD_DATABASE": "database of Optuna's tables, if any"}
    for name, purpose in databases.items():
        variable = f"FACTOR_SEARCH_{name}"  # other users can read a process's arguments, and a URL may have a password
        given = os.environ.get(variable)
        flag = f"--{name.lower().replace('_', '-')}"
        needed = name == "DATABASE" and given is None
        parser.add_argument(
            flag, default=given, required=needed, metavar="URL", help=f"{purpose} (default: ${variable})"
        )
    option = parser.add_argument
    option("--ray-address", metavar="HOST:PORT", help="Ray cluster to join (default: start a private one)")
    option("--workers", type=int, metavar="N", help="maximum number of workers (default: as many as fit)")
    option("--cpus-per-worker", type=float, default=1.0, metavar="X", help="CPU cores of each worker (default: 1)")
    option(
        "--gpus-per-worker", type=float, metavar="X", help="GPUs of each worker (default: 1 if there are GPUs, else 0)"
    )
    option("--jobs", type=int, default=4, metavar="N", help="maximum number of jobs that run at once (default: 4)")
    option(
        "--evaluation-timeout", type=float, metavar="SECONDS", help="end an evaluation after this time (default: never)"
    )
    option(
        "--prepare-minutes",
        type=float,
        default=PREPARE_SECONDS / 60,
        metavar="N",
        help="limit for reading the documents of a job, and for loading its model (default: %(default)g)",
    )
    lease_help = "how long jobs stay claimed if this coordinator stops renewing them (default: 10)"
    option("--lease-seconds", type=float, default=10.0, metavar="SECONDS", help=lease_help)
    secret_help = f"file with the secret that signs webhooks (default: ${SECRET_VARIABLE})"
    option("--webhook-secret-file", type=Path, metavar="FILE", help=secret_help)
    option("--log-level", default="info", choices=LEVELS, help="least severe messages to log (default: info)")
    option("--log-format", default="text", choices=FORMATS, help="text, or json: one object a line (default: text)")
    add_policy_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
