"""The time from the server's start to its first answer to /healthz, and the cost of importing its parts.

With ``--other``, the runs of two checkouts alternate. Each run has its own process, and medians are printed. The first
run of each checkout, which fills the file system's caches, is not counted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.ports import free_port

HERE = Path(__file__).parents[1]
MODULES = ("storage.jobs", "storage.dashboard.projector", "api.app")
FORMER = {"storage.dashboard.projector": "storage.projector"}
"""Names of modules in earlier checkouts."""
PROBE = """
import importlib, resource, sys, time
start = time.perf_counter()
importlib.import_module(sys.argv[1])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "torch" in sys.modules)
"""


def import_cost(checkout: Path, module: str) -> tuple[float, float, bool]:
    """Seconds, peak memory in MB, and whether torch was loaded."""
    former = FORMER.get(module)
    if former is not None and (checkout / f"{former.replace('.', '/')}.py").exists():
        module = former
    printed = subprocess.run(
        [sys.executable, "-c", PROBE, module], cwd=checkout, env=environment(checkout), capture_output=True, check=True
    ).stdout.split()
    return float(printed[0]), float(printed[1]), printed[2] == b"True"


def seconds_to_health(checkout: Path) -> float:
    """From the start of ``serve`` with a dashboard and a coordinator to the first answer of /healthz."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        database = f"sqlite:///{folder}/jobs.db"
        command = [sys.executable, "-m", "api", "serve", "--port", str(port), "--database", database]
        start = time.perf_counter()
        server = subprocess.Popen(
            command, cwd=checkout, env=environment(checkout), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while time.perf_counter() - start < 120:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).read()
                except (urllib.error.URLError, OSError):
                    time.sleep(0.02)
                else:
                    return time.perf_counter() - start
            raise SystemExit(f"the server of {checkout} did not answer within 120 s")
        finally:
            server.terminate()
            server.wait(60)


def environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, metavar="CHECKOUT", help="another checkout to measure in alternation")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    checkouts = {"this": HERE} | ({"other": arguments.other.resolve()} if arguments.other else {})
    health: dict[str, list[float]] = {name: [] for name in checkouts}
    for run in range(arguments.runs + 1):
        for name, checkout in checkouts.items():
            seconds = seconds_to_health(checkout)
            if run:
                health[name].append(seconds)
    for name, seconds_of in health.items():
        print(f"{name}: /healthz answers after {statistics.median(seconds_of):.2f} s")
    if "other" in health:
        print(f"this / other: {statistics.median(health['this']) / statistics.median(health['other']):.3f}")
    for name, checkout in checkouts.items():
        for module in MODULES:
            costs = [import_cost(checkout, module) for _ in range(arguments.runs)]
            seconds, megabytes = (statistics.median(cost[column] for cost in costs) for column in (0, 1))
            print(f"{name}: import {module}: {seconds:.2f} s, {megabytes:.0f} MB{', torch' if costs[0][2] else ''}")


if __name__ == "__main__":
    main()
