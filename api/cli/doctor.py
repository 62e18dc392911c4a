"""``factor-search doctor``: what is installed, and whether everything that is needed can be reached."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from api.cli.arguments import add_json_argument
from api.cli.commands import NotInstalledError, check_installed
from api.cli.environment import add_database_argument, add_server_arguments, add_variable_argument
from api.cli.private_server import last_lines
from factor_search.errors import FactorSearchError, one_line
from factor_search.files.cache import cache_folder
from factor_search.version import versions
from factor_search.visible import masked

SERVICE_VERSIONS = ("optuna-dashboard", "ray", "sqlalchemy", "fastapi")
OPTIONAL = {
    "datasets": "data sets cannot be read",
    "pyarrow": "parquet and .zst files cannot be read",
    "peft": "fine-tuning cannot use LoRA",
}
LEAST_FREE_BYTES = 2 * 2**30
RAY_SECONDS = 90
RAY_START = """
import json, sys
from factor_search.errors import FactorSearchError
from workers.ray_environment import prepare_environment
try:
    prepare_environment(None)
    from workers.ray_backend import RayBackend
    backend = RayBackend()
    capacity = backend.capacity()
    print(json.dumps({"CPU": capacity.cpus, "GPU": capacity.gpus, "node:": 1, "workers": capacity.workers}))
    backend.close()
except FactorSearchError as error:
    sys.exit(str(error))
"""
"""Brings Ray up as a coordinator does."""
RAY_PROBE = """
import json, logging, ray
ray.init(address={address!r}, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
print(json.dumps(ray.cluster_resources()))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the result."""

    what: str
    ok: bool
    detail: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_database_argument(parser)
    add_variable_argument(parser, "--ray-address", metavar="HOST:PORT", help="ask this cluster for its resources")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.epilog = "Exit status: 0 no problem, 1 at least one problem."
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything and print each finding as soon as it is known."""
    findings = []
    for finding in examine(arguments):
        findings.append(finding)
        if not arguments.json:
            print(f"{'ok     ' if finding.ok else 'PROBLEM'} {finding.what:10} {finding.detail}", flush=True)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    return 0 if all(finding.ok for finding in findings) else 1


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """All findings; those about the service only where it is installed."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("optional", _optional),
        ("torch", _devices),
    ]
    if _has_service():
        checks += [("ray", lambda: _ray(arguments.ray_address)), ("database", lambda: _database(arguments.database))]
    checks += [("disk", lambda: _free(Path.cwd())), ("cache", lambda: _free(cache_folder("tokens")))]
    if arguments.url:
        checks.append(("server", lambda: _server(arguments.url)))
    for what, check in checks:
        try:
            yield Finding(what, True, check())
        except Exception as error:  # whatever is wrong with an installation is a finding
            kind = "" if isinstance(error, FactorSearchError) else f"{type(error).__name__}: "
            yield Finding(what, False, f"{kind}{masked(str(error)) if kind == '' else one_line(error)}")


def _has_service() -> bool:
    try:
        check_installed("serve")
    except NotInstalledError:
        return False
    return True


def _versions() -> str:
    packages = ("transformers", "optuna", *(SERVICE_VERSIONS if _has_service() else ()))
    known = versions() | {package: metadata.version(package) for package in packages}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def _optional() -> str:
    found, missing = [], []
    for package, consequence in OPTIONAL.items():
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(f"{package} is not installed: {consequence}")
    if not _has_service():
        missing.append("the service is not installed: pip install 'factor-search[service]'")
    return ", ".join(found + missing)


def _devices() -> str:
    import torch

    devices = [f"{torch.get_num_threads()} processor threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append(f"cuda:{number} {properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
    return ", ".join(devices)


def _ray(address: str | None) -> str:
    from workers.ray_environment import check_reachable

    if address is None:
        probe, said = RAY_START, "a private instance starts: "
    else:
        check_reachable(address)
        probe, said = RAY_PROBE.format(address=address), f"cluster at {address}: "
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", probe], capture_output=True, text=True, timeout=RAY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise FactorSearchError(f"no answer within {RAY_SECONDS} s from {address or 'a private instance'}") from None
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        what = "no private instance starts, so no coordinator comes up" if address is None else f"cannot join {address}"
        raise FactorSearchError(f"{what}:\n{last_lines(process.stderr)}")
    resources = json.loads(lines[-1])
    nodes = sum(name.startswith("node:") and name != "node:__internal_head__" for name in resources)
    return said + f"{nodes} nodes, {resources.get('CPU', 0):g} processors, {resources.get('GPU', 0):g} GPUs"


def _database(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from storage.database import Database

    try:
        parsed = make_url(url)
    except ArgumentError:
        raise FactorSearchError(f"{url!r} is not a database URL (sqlite:///file.db, postgresql://...)") from None
    file = parsed.database
    if parsed.get_backend_name() == "sqlite" and file and not Path(file).exists():
        if not Path(file).absolute().parent.is_dir():
            raise FactorSearchError(f"there is no folder {Path(file).absolute().parent} for the database")
        return f"{url} is not there yet: factor-search serve creates it"
    with Database(url, migrate=False) as database:
        return f"{database.shown} answers{database.check_version()}"


def _free(folder: Path) -> str:
    if not folder.is_dir():
        raise FactorSearchError(f"{folder} cannot be created: set FACTOR_SEARCH_CACHE to a folder that can be written")
    free = shutil.disk_usage(folder).free
    said = f"{folder}: {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        raise FactorSearchError(f"{said}: free some space")
    return said


def _server(url: str) -> str:
    from api.client import Client

    with Client(url) as client:
        version = client.health().version
        next(client.jobs.list(limit=1), None)  # also checks the key
        return f"{client.url} answers, version {version}"
