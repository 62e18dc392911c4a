"""``factor-search serve``: REST interface, dashboard, and the coordinator that drives jobs."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from api.app import create_app
from api.cli.environment import (
    add_database_argument,
    add_variable_argument,
    positive_float,
    positive_int,
    truth_from,
    variable_of,
)
from api.dashboard import Dashboard
from api.server import STOP_SECONDS, ServeError, Server, listen, url_of
from api.settings import Settings, is_loopback
from factor_search.report.tracing import set_up_tracing
from factor_search.visible import FORMATS, LEVELS, set_up_logging
from storage.dashboard.address import optuna_url_beside
from storage.database import Database, sqlite_file
from storage.errors import DatabaseError
from storage.keys import KeyStore
from workers.policy import Policy, add_policy_arguments
from workers.supervisor import Supervisor
from workers.webhooks import SECRET_VARIABLE, read_secret

COORDINATOR_FLAGS = (
    "--ray-address",
    "--workers",
    "--cpus-per-worker",
    "--gpus-per-worker",
    "--jobs",
    "--evaluation-timeout",
    "--prepare-minutes",
    "--webhook-secret-file",
    "--log-level",
    "--log-format",
)
"""Passed on to the coordinator unchanged."""
logger = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_variable_argument(parser, "--host", default="127.0.0.1", metavar="H", help="address to listen on")
    add_variable_argument(
        parser, "--port", type=_port, default="8400", metavar="P", help="port to listen on; 0 takes a free one"
    )
    add_database_argument(parser)
    add_variable_argument(
        parser,
        "--dashboard-database",
        metavar="URL",
        help="database of Optuna's tables; default: the same for PostgreSQL, NAME.dashboard.db beside an SQLite file",
    )
    add_policy_arguments(parser)
    add_variable_argument(
        parser, "--ray-address", metavar="HOST:PORT", help="join this Ray cluster; default: a private Ray instance"
    )
    add_variable_argument(parser, "--workers", type=positive_int, metavar="N", help="at most N workers")
    add_variable_argument(
        parser, "--cpus-per-worker", type=positive_float, metavar="X", help="processors of each worker"
    )
    add_variable_argument(parser, "--gpus-per-worker", type=positive_float, metavar="X", help="GPUs of each worker")
    add_variable_argument(parser, "--jobs", type=positive_int, metavar="N", help="run at most N jobs at once")
    add_variable_argument(
        parser, "--evaluation-timeout", type=positive_float, metavar="SECONDS", help="time limit of one evaluation"
    )
    add_variable_argument(
        parser,
        "--prepare-minutes",
        type=positive_float,
        metavar="N",
        help="limit for reading the documents of a job, and for loading its model; default: 60",
    )
    add_variable_argument(
        parser,
        "--webhook-secret-file",
        type=Path,
        metavar="FILE",
        help=f"file with the secret that signs webhooks; default: ${SECRET_VARIABLE}",
    )
    add_variable_argument(
        parser, "--log-level", default="warning", choices=[*LEVELS], help="least severe messages that are logged"
    )
    add_variable_argument(
        parser, "--log-format", default="text", choices=[*FORMATS], help="text, or json: one object a line"
    )
    add_variable_argument(
        parser,
        "--keep-days",
        type=positive_float,
        metavar="N",
        help="delete jobs and plans that ended more than N days ago and are not kept (factor-search storage keep); "
        "default: delete none",
    )
    parser.add_argument("--no-coordinator", action="store_true", help="run no jobs: coordinators elsewhere do")
    parser.add_argument(
        "--stop-at-end-of-input",
        action="store_true",
        help="stop when standard input ends, as it does when the program that started this one is killed",
    )
    parser.add_argument("--no-dashboard", action="store_true", help="do not serve the dashboard")
    parser.epilog = (
        "On loopback (the default) no key is needed until one is created; any other --host requires keys "
        "(factor-search keys create). Every option can also be given by the environment variable in brackets."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    set_up_logging(arguments.log_level, arguments.log_format)
    set_up_tracing("factor-search-server")
    if arguments.stop_at_end_of_input:
        threading.Thread(target=_stop_at_end_of_input, name="parent", daemon=True).start()
    loopback = is_loopback(arguments.host)
    policy = read_policy(arguments, hub=loopback)
    policy.close_the_hub()
    check_webhook_secret(policy, arguments)
    check_keys(arguments.database, loopback=loopback, host=arguments.host)
    optuna_url = arguments.dashboard_database or optuna_url_beside(arguments.database)
    if not arguments.no_dashboard:
        check_reachable(optuna_url)
    settings = Settings(
        database_url=arguments.database,
        policy=policy,
        loopback=loopback,
        optuna_url=optuna_url,
        keep_days=arguments.keep_days,
    )
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(arguments.host, arguments.port))
        dashboard = None if arguments.no_dashboard else Dashboard(optuna_url)
        supervisor = None
        if not arguments.no_coordinator:
            command = coordinator_command(arguments, policy)
            environment = coordinator_environment(arguments.database, optuna_url if dashboard else None)
            supervisor = Supervisor(command, name="coordinator", environment=environment)

        def on_ready() -> None:
            """Start what takes seconds to import only now, since it would delay the first answer."""
            url = url_of(listener)
            pages = f", dashboard at {url}/dashboard" if dashboard else ""
            print(f"serving at {url} (REST interface described at {url}/docs{pages})", flush=True)
            if supervisor:
                stack.enter_context(supervisor)
            if dashboard:
                threading.Thread(target=_open, args=(dashboard,), daemon=True).start()

        def on_stop() -> None:
            """Begin to stop all that was started, and end this process in time whatever hangs."""
            threading.Thread(target=_end_in_time, args=(supervisor,), name="stop", daemon=True).start()
            if supervisor:
                supervisor.ask_to_stop()

        server = Server(
            create_app(settings, dashboard), log_level=arguments.log_level, on_ready=on_ready, on_stop=on_stop
        )
        server.run(sockets=[listener])
    return 0


def _stop_at_end_of_input() -> None:
    while os.read(0, 1024):  # unbuffered: a thread waiting in a buffered read breaks the exit of Python
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end_in_time(supervisor: Supervisor | None) -> None:
    """End this process, and the coordinator, though a request or a database hangs."""
    time.sleep(STOP_SECONDS)
    logger.error("not stopped within %g s: ended", STOP_SECONDS)
    if supervisor:
        supervisor.kill()
    os._exit(1)


def _open(dashboard: Dashboard) -> None:
    """Open the dashboard before its first request; a failure is logged, and requests try again."""
    try:
        dashboard.open()
    except DatabaseError as error:
        logger.error("dashboard: %s", error)


def read_policy(arguments: argparse.Namespace, *, hub: bool) -> Policy:
    """The policy from the arguments, or from the environment for those not given."""
    roots = os.environ.get(variable_of("--root"))
    if not arguments.root and roots:
        arguments.root = [Path(root) for root in roots.split(os.pathsep) if root]
    if arguments.hub is None:
        arguments.hub = truth_from("--hub")
    if truth_from("--allow-remote-code"):
        arguments.allow_remote_code = True
    trackers = os.environ.get(variable_of("--tracker"))
    if not arguments.tracker and trackers:
        arguments.tracker = trackers.split(",")
    hosts = os.environ.get(variable_of("--webhook-host"))
    if not arguments.webhook_host and hosts:
        arguments.webhook_host = hosts.split(",")
    if arguments.work is None:
        arguments.work = _work_folder(arguments.database)
    return Policy.from_arguments(arguments, hub=hub)


def _work_folder(database_url: str) -> Path | None:
    """The folder of what plans produce, if no argument names it: from the environment, or beside an SQLite file."""
    given = os.environ.get(variable_of("--work"))
    if given:
        return Path(given)
    file = sqlite_file(database_url)
    return None if file is None else file.with_name(f"{file.stem}.work")


def check_webhook_secret(policy: Policy, arguments: argparse.Namespace) -> None:
    """Refuse to accept webhooks that could not be signed.

    Raises:
        ServeError: the coordinator would have no secret.
        SpecError: what it would have is not a secret.
    """
    given = os.environ.get(SECRET_VARIABLE)
    if policy.webhook_hosts and not arguments.no_coordinator and read_secret(arguments.webhook_secret_file) is None:
        raise ServeError(f"--webhook-host needs a secret to sign with: {SECRET_VARIABLE} or --webhook-secret-file FILE")
    if given is not None:
        os.environ[SECRET_VARIABLE] = given  # for the coordinator


def check_keys(database_url: str, *, loopback: bool, host: str) -> None:
    """Refuse to be reachable from other machines without keys; this also checks that the database can be used.

    Raises:
        ServeError: there is no usable key.
        DatabaseError: the database cannot be reached, opened or migrated.
    """
    with Database(database_url) as database:
        usable = any(key.revoked_at is None for key in KeyStore(database).list())
        shown = database.shown
    if not loopback and not usable:
        raise ServeError(
            f"--host {host} can be reached from other machines, and {shown} has no API key in use: create one first "
            "with factor-search keys create --name NAME --scope admin"
        )


def check_reachable(url: str) -> None:
    """Refuse an address of Optuna's tables that is wrong, without loading Optuna.

    Raises:
        DatabaseError: no database can be opened there.
    """
    with Database(url, migrate=False) as database, database.reading():
        pass


def coordinator_environment(database_url: str, optuna_url: str | None) -> dict[str, str]:
    """The coordinator's environment, which holds the addresses: they may have passwords, and arguments are public."""
    urls = {"--database": database_url, "--dashboard-database": optuna_url}
    ours = {name: value for name, value in os.environ.items() if name not in map(variable_of, urls)}
    return ours | {variable_of(flag): url for flag, url in urls.items() if url is not None}


def coordinator_command(arguments: argparse.Namespace, policy: Policy) -> list[str]:
    """The command line of the coordinator's process."""
    command = [sys.executable, "-P", "-m", "workers"]
    for flag in COORDINATOR_FLAGS:
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if value is not None:
            command += [flag, str(value)]
    return [*command, *policy.as_arguments()]


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return port
