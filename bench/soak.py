"""An hour of jobs and plans that are submitted, polled, watched, paused, resumed and cancelled without pause.

Memory, open files and threads of each process of the service, and the size of its database, are sampled. A figure
grows without bound if it is still rising after the first half: it is larger by a fifth, and by more than the smallest
growth that counts, in the last quarter than in the second. The database may grow with what is recorded, but not by
more for each candidate. Candidates are scored by stubs.

    python -m bench.soak [--minutes 60] [--seed 0] [--json FILE]
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from sqlalchemy import func, select

from bench.faults import worker
from bench.faults.databases import SqliteFile
from bench.faults.disks import Disk
from bench.faults.service import PATTERNS, Service
from storage.schema import candidates

SAMPLE_SECONDS = 5.0
MOST_JOBS = 4
"""So many wait or run at a time."""
ENOUGH = {"memory, MB": 40.0, "open files": 20.0, "threads": 10.0, "database, kB a candidate": 0.5}
"""Smaller growth does not count."""
GROWTH = 1.2


@dataclass
class Series:
    """One figure over time."""

    hours: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, hours: float, value: float) -> None:
        self.hours.append(hours)
        self.values.append(value)

    @property
    def slope(self) -> float:
        """How much it grows in an hour after the first quarter: a least-squares line."""
        start = len(self.values) // 4
        hours, values = self.hours[start:], self.values[start:]
        return statistics.linear_regression(hours, values).slope if len(set(hours)) > 1 else 0.0

    @property
    def quarters(self) -> tuple[float, float]:
        """Medians of the second and of the last quarter."""
        quarter = max(1, len(self.values) // 4)
        return statistics.median(self.values[quarter : 2 * quarter] or self.values), statistics.median(
            self.values[-quarter:]
        )

    def grows(self, enough: float) -> bool:
        before, after = self.quarters
        return after - before > enough and after > GROWTH * before


class User:
    """Somebody who does everything that the interface offers, at random."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self.service, self.rng = service, rng
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=60.0)
        self.known: list[str] = []
        """Paths of jobs and plans."""
        self.counts: dict[str, int] = defaultdict(int)

    def act(self) -> None:
        running = [state for state in ("queued", "running", "paused") for _ in self._listed(state)]
        if len(running) < MOST_JOBS:
            self._submit()
        path = self.rng.choice(self.known)
        action = self.rng.choices(
            ("", "/events", "/report", "/factors", "/pause", "/resume", "/cancel", "/evaluations", "list"),
            (8, 2, 2, 2, 2, 4, 1, 4, 4),
        )[0]
        if action == "list":
            self._call("GET", self.rng.choice(("/v1/jobs", "/v1/plans", "/metrics", "/readyz")))
        elif action in ("/pause", "/resume", "/cancel"):
            self._call("POST", path + action)
        elif action == "/events":
            self._watch(path)
        elif action != "/evaluations" or "/jobs/" in path:
            self._call("GET", path + action)

    def _listed(self, state: str) -> list[Any]:
        jobs: list[Any] = self._call("GET", f"/v1/jobs?state={state}").json()["jobs"]
        return jobs

    def _submit(self) -> None:
        document = self.service.specification(worker.STUB, budget=self.rng.choice((24, 48, 96)))
        kind = self.rng.choice(("jobs", "jobs", "plans"))
        if kind == "plans":
            search = {name: document.pop(name) for name in ("target_length", "strategy", "budget")}
            document["stages"] = [{"kind": "search", **search}]
        answer = self._call("POST", f"/v1/{kind}", json=document)
        answer.raise_for_status()
        self.known = [*self.known[-200:], f"/v1/{kind}/{answer.json()['id']}"]

    def _watch(self, path: str) -> None:
        """Read a stream for a moment and leave it, as browsers do."""
        until = time.monotonic() + self.rng.uniform(0.1, 1.0)
        with (
            contextlib.suppress(httpx2.ReadTimeout),
            self.client.stream("GET", f"{path}/events", timeout=1.0) as stream,
        ):
            for _ in stream.iter_lines():
                if time.monotonic() > until:
                    break
        self.counts["GET /events"] += 1

    def _call(self, method: str, path: str, **options: Any) -> Any:
        answer = self.client.request(method, path, **options)
        if answer.status_code >= 500:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        self.counts[f"{method} {path.rpartition('/')[2].partition('?')[0] if method == 'POST' else 'others'}"] += 1
        return answer


def sample(service: Service, series: dict[tuple[str, str], Series], hours: float) -> None:
    """Add the present figures."""
    assert service.process is not None
    processes = {kind: service.find(kind) for kind in PATTERNS}
    processes["serve"] = [psutil.Process(service.process.pid)]
    for kind, found in processes.items():
        with contextlib.suppress(psutil.Error, ValueError):
            figures = {
                "memory, MB": max(process.memory_info().rss for process in found) / 1e6,
                "open files": max(process.num_fds() for process in found),
                "threads": max(process.num_threads() for process in found),
            }
            for name, value in figures.items():
                series[kind, name].add(hours, value)
    with service.database() as database, database.reading() as connection:
        recorded = connection.scalar(select(func.count()).select_from(candidates)) or 0
    assert isinstance(service.server, SqliteFile)
    size = service.server.file.stat().st_size
    series["database", "database, MB"].add(hours, size / 1e6)
    if recorded:
        series["database", "database, kB a candidate"].add(hours, size / 1e3 / recorded)


def soak(folder: Path, minutes: float, seed: int) -> tuple[dict[tuple[str, str], Series], dict[str, int]]:
    """Use a service for so long; returns the figures and what was done."""
    rng = random.Random(seed)
    places = {name: Disk(folder / name, mounted=False) for name in ("database", "work", "cache")}
    for place in places.values():
        place.folder.mkdir()
    server = SqliteFile(places["database"].folder, folder / "clock")
    service = Service(folder, server, places, rng)
    series: dict[tuple[str, str], Series] = defaultdict(Series)
    try:
        service.start()
        service.wait(service.is_ready, "the coordinator did not start")
        user, began, sampled = User(service, rng), time.monotonic(), 0.0
        while (now := time.monotonic()) - began < 60 * minutes:
            user.act()
            if now - sampled >= SAMPLE_SECONDS:
                sampled = now
                sample(service, series, (now - began) / 3600)
        user.client.close()
        service.stop()
        return series, user.counts | {"processes left": len(service.orphans())}
    finally:
        service.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all samples into this file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the service too
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        os.environ["FACTOR_SEARCH_CACHE"] = str(Path(name) / "own-cache")
        series, counts = soak(Path(name), arguments.minutes, arguments.seed)
    growing = 0
    print(f"{'process':12}{'figure':28}{'second quarter':>16}{'last quarter':>14}{'slope an hour':>16}")
    for (process, figure), values in series.items():
        before, after = values.quarters
        grows = figure in ENOUGH and values.grows(ENOUGH[figure])
        growing += grows
        note = "  GROWS" if grows else ""
        print(f"{process:12}{figure:28}{before:>16.1f}{after:>14.1f}{values.slope:>+16.1f}{note}")
    print(", ".join(f"{count} x {what}" for what, count in sorted(counts.items())))
    if arguments.json:
        samples = {f"{process}: {figure}": vars(values) for (process, figure), values in series.items()}
        arguments.json.write_text(json.dumps(samples, indent=1))
    return int(growing > 0 or counts["processes left"] > 0)


if __name__ == "__main__":
    sys.exit(main())
