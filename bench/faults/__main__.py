"""A campaign of random faults against a whole service on loopback: server, coordinator, Ray, workers, database.

Two searches always run. Again and again a fault, or two, drawn by a seed, comes at a random moment. Then the service
must settle: be ready, and record evaluations. At the end, the factors of every job must equal those of an undisturbed
search in one process, no recorded evaluation may be lost or computed again, and no process may be left. Candidates of
most jobs are scored by stubs; files that change and full disks are tried on the shipped model.

Disks are tmpfs mounts, so faults of disks need the right to mount; without it they are left out, and the report says
so. Clocks are stepped for Python, SQLite and PostgreSQL, see bench/faults/stepped_clock.py. The same seed gives the
same faults at the same delays; what they meet depends on the machine.

    python -m bench.faults [--seed 0] [--faults 200] [--minutes 30] [--database sqlite|postgresql] [--json FILE]
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.faults.databases import database_server
from bench.faults.disks import disks
from bench.faults.kinds import KINDS, Kind
from bench.faults.service import PATIENCE_SECONDS, Service, StuckError
from storage.errors import StorageError

DISKS = {"database": 96, "work": 768, "cache": 96}
"""Megabytes, by folder."""
LONGEST_DELAY_SECONDS = 1.5
BATCH = 1 / 4
"""How often a second fault comes before the service has settled."""


@dataclass
class Fault:
    """One fault and what came of it."""

    kind: str
    database: str
    at_seconds: float
    did: str
    settled_seconds: float | None
    wrong: str | None


@dataclass
class Result:
    """What a campaign on one database has found."""

    database: str
    faults: list[Fault] = field(default_factory=list)
    jobs: int = 0
    evaluations: int = 0
    differing: list[str] = field(default_factory=list)
    lost: int = 0
    repeated: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    health: str = ""

    @property
    def wrong(self) -> int:
        """How many things are not as they should be."""
        listed = len(self.differing) + len(self.repeated) + len(self.orphans) + len(self.stuck)
        return listed + self.lost + sum(fault.wrong is not None for fault in self.faults)


def drawn(kinds: Sequence[Kind], rng: random.Random) -> Iterator[Kind]:
    """Kinds without end, in cycles in which each occurs as often as its weight says."""
    while True:
        cycle = [kind for kind in kinds for _ in range(kind.weight)]
        rng.shuffle(cycle)
        yield from cycle


def possible(kinds: Sequence[Kind], database: str, mounted: bool) -> tuple[list[Kind], list[str]]:
    """The kinds that can be tried here, and the names of those that cannot."""
    here = [kind for kind in kinds if database in kind.databases]
    return (
        [kind for kind in here if mounted or not kind.needs_disks],
        [kind.name for kind in here if kind.needs_disks and not mounted],
    )


@dataclass(frozen=True)
class Limits:
    """How much a campaign does."""

    faults: int
    seconds: float
    patience: float
    """Seconds in which the service must settle."""


def campaign(kinds: Sequence[Kind], database: str, seed: int, limits: Limits, folder: Path) -> Result:
    """Run faults one after the other on one database, until there were enough or the time is over."""
    rng, result = random.Random(f"{seed} {database}"), Result(database)
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(disks(folder, DISKS))
        server = stack.enter_context(database_server(database, places["database"].folder, folder / "clock"))
        chosen, result.left_out = possible(kinds, database, places["database"].mounted)
        service = Service(folder, server, places, random.Random(rng.random()), limits.patience)
        stack.callback(service.close)
        began = time.monotonic()
        try:
            service.start()
            service.keep_busy()
            service.settle()
            settled = True
            for kind in drawn(chosen, rng):
                enough = len(result.faults) >= limits.faults or time.monotonic() - began > limits.seconds
                if enough:
                    break
                service.keep_busy()
                time.sleep(rng.uniform(0, LONGEST_DELAY_SECONDS))
                if not (settled or kind.in_batches):
                    service.settle()
                settled = not (kind.in_batches and rng.random() < BATCH)
                result.faults.append(fault_of(service, kind, rng, time.monotonic() - began, settle=settled))
            service.settle()
            service.finish()
        except StuckError as error:
            result.stuck.append(str(error))
        result.health = str(service.health)
        conclude(service, result)
    return result


def fault_of(service: Service, kind: Kind, rng: random.Random, at: float, *, settle: bool) -> Fault:
    """Do it, and wait until the service has settled."""
    fault = Fault(kind.name, service.server.kind, round(at, 1), "", None, None)
    rng = random.Random(rng.random())  # a fault draws what it needs, and the next ones stay the same
    with contextlib.suppress(StorageError):
        service.look()
    try:
        service.spare()
        service.restart()  # the fault before may have killed the server, and not waited
        fault.did = kind.inject(service, rng)
    except StuckError as error:
        fault.wrong = str(error)
    except Exception as error:  # of the campaign itself, such as a server that is away when a plan is submitted
        fault.wrong = f"{type(error).__name__}: {error}"
    if settle:
        try:
            fault.settled_seconds = round(service.settle(), 1)
        except StuckError as error:
            fault.wrong = "; ".join(filter(None, (fault.wrong, f"stuck: {error}")))
            raise_if_gone(service)
    print(f"{at:7.1f} s  {fault.database:10}  {fault.kind}: {fault.wrong or fault.did}", flush=True)
    return fault


def raise_if_gone(service: Service) -> None:
    """Try once with a new process what an operator would try."""
    with contextlib.suppress(StuckError):
        service.stop()
    service.start()
    service.settle()


def conclude(service: Service, result: Result) -> None:
    """Compare what there is with what there should be, and stop the service."""
    result.jobs, result.evaluations = len(service.jobs), len(service.recorded)
    with contextlib.suppress(StorageError):
        result.differing = service.differing()
    result.lost, result.repeated = len(service.lost), service.repeated()
    try:
        service.stop()
    except StuckError as error:
        result.stuck.append(str(error))
    result.orphans = service.orphans()


def table(results: Sequence[Result]) -> str:
    """The faults by kind."""
    faults = [fault for result in results for fault in result.faults]
    names = list(dict.fromkeys(kind.name for kind in KINDS if any(fault.kind == kind.name for fault in faults)))
    lines = [f"{'kind':32}{'faults':>8}{'wrong':>8}{'settled after, median and worst':>34}"]
    for name in names:
        mine = [fault for fault in faults if fault.kind == name]
        settled = sorted(fault.settled_seconds for fault in mine if fault.settled_seconds is not None)
        times = f"{settled[len(settled) // 2]:.1f} s, {settled[-1]:.1f} s" if settled else ""
        lines.append(f"{name:32}{len(mine):>8}{sum(fault.wrong is not None for fault in mine):>8}{times:>34}")
    for result in results:
        lines.append(
            f"{result.database}: {len(result.faults)} faults, {result.jobs} jobs, {result.evaluations} evaluations: "
            f"{len(result.differing)} jobs not as if undisturbed, {result.lost} evaluations lost, "
            f"{len(result.repeated)} repeated, {len(result.orphans)} processes left, {len(result.stuck)} times stuck"
        )
        lines.append(f"{result.database}: {result.health}")
        lines += [f"  {said}" for said in (*result.differing, *result.repeated, *result.orphans, *result.stuck)]
        if result.left_out:
            lines.append(f"  left out, since nothing can be mounted here: {', '.join(result.left_out)}")
    return "\n".join(lines)


def run(kinds: Sequence[Kind], databases: Sequence[str], seed: int, limits: Limits) -> tuple[list[Result], int]:
    """A campaign on each database; returns the results and how much is wrong."""
    results, each = [], len(databases)
    for number, database in enumerate(databases):
        faults = limits.faults // each + (number < limits.faults % each)
        share = replace(limits, faults=faults, seconds=limits.seconds / each)
        with tempfile.TemporaryDirectory(prefix="faults") as name:
            os.environ["FACTOR_SEARCH_CACHE"] = str(Path(name) / "own-cache")
            results.append(campaign(kinds, database, seed, share, Path(name)))
    return results, sum(result.wrong for result in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only this one; default: half on each")
    parser.add_argument("--kind", action="append", help="only kinds whose names contain this; may be repeated")
    patience_help = f"in which the service must settle; more on a busy machine (default: {PATIENCE_SECONDS:g})"
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS, metavar="SECONDS", help=patience_help)
    parser.add_argument("--json", type=Path, help="write everything into this file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the service too
    wanted = [kind for kind in KINDS if not arguments.kind or any(text in kind.name for text in arguments.kind)]
    databases = [arguments.database] if arguments.database else ["sqlite", "postgresql"]
    limits = Limits(arguments.faults, 60 * arguments.minutes, arguments.patience)
    results, wrong = run(wanted, databases, arguments.seed, limits)
    print(table(results))
    if arguments.json:
        document: dict[str, Any] = {"seed": arguments.seed, "wrong": wrong}
        arguments.json.write_text(json.dumps(document | {"results": [asdict(result) for result in results]}, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
