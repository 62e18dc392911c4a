"""What 200 clients cost a service with 4 jobs: ``python -m bench.watched_load --help``.

A coordinator with stub workers, which sleep instead of evaluating, records evaluations in an SQLite database. A real
``factor-search serve`` on it is polled by 100 clients and streams events to another 100. Runs with and without clients
alternate. The exit status is 1 if a client meets an error, or the throughput falls by more than 5 %.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from bench.health import served
from bench.stub_load import backend_of, run
from storage.database import Database
from workers.__main__ import SWITCH_SECONDS

LEAST_RATIO = 0.95


@dataclass
class Seen:
    """What the clients of one run met."""

    answers: int = 0
    events: int = 0
    errors: int = 0
    error: str = ""


async def watch_all(url: str, clients: int, pause_seconds: float, stop: Any) -> Seen:
    """Half of the clients poll the jobs, the other half read their streams, until told to stop."""
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        while not (jobs := (await client.get("/v1/jobs")).json()["jobs"]) and not stop.is_set():
            await asyncio.sleep(0.1)
        ids = [job["id"] for job in jobs]

        async def poll(number: int) -> None:
            await asyncio.sleep(pause_seconds * number / clients)
            while not stop.is_set():
                answer = await client.get(f"/v1/jobs/{ids[number % len(ids)]}")
                answer.raise_for_status()
                seen.answers += 1
                await asyncio.sleep(pause_seconds)

        async def stream(number: int) -> None:
            async with client.stream("GET", f"/v1/jobs/{ids[number % len(ids)]}/events") as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    seen.events += line.startswith("data:")
                    if stop.is_set():
                        return

        async def counted(one: Any) -> None:
            try:
                await one
            except Exception as error:
                seen.errors += 1
                seen.error = f"{type(error).__name__}: {error}"

        await asyncio.gather(*(counted(poll(n) if n % 2 else stream(n)) for n in range(clients)))
    return seen


def clients_process(url: str, clients: int, pause_seconds: float, stop: Any, found: Any) -> None:
    found.put(asyncio.run(watch_all(url, clients, pause_seconds, stop)))


def measure(given: argparse.Namespace, clients: int) -> tuple[float, Seen]:
    """Evaluations recorded a second, and what the clients met."""
    found: multiprocessing.Queue[Seen] = multiprocessing.Queue()
    stop = multiprocessing.Event()
    with tempfile.TemporaryDirectory(prefix="load") as scratch, served(Path(scratch), "--no-dashboard") as url:
        watching = multiprocessing.Process(
            target=clients_process, args=(url, clients, given.pause, stop, found), daemon=True
        )
        with Database(f"sqlite:///{scratch}/jobs.db") as database:
            if clients:
                watching.start()
            with backend_of("threads", given.workers, given.sleep) as backend:
                load = run(database, backend, jobs=given.jobs, generations=given.generations)
        stop.set()
        seen = found.get(timeout=60) if clients else Seen()
    return load.rate, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two polls of a client (default: 2)")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--generations", type=int, default=4, help="of 64 candidates")
    parser.add_argument("--sleep", type=float, default=0.2, help="mean seconds of an evaluation (default: 0.2)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)
    ratios, errors = [], 0
    for number in range(given.rounds):
        started = time.monotonic()
        alone, _ = measure(given, 0)
        watched, seen = measure(given, given.clients)
        ratios.append(watched / alone)
        errors += seen.errors
        print(
            f"round {number + 1}: {alone:.1f} evaluations/s alone, {watched:.1f} beside {given.clients} clients "
            f"({100 * ratios[-1]:.1f} %); they got {seen.answers} answers, {seen.events} events, {seen.errors} errors "
            f"{seen.error} ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    ratio = statistics.median(ratios)
    print(f"median {100 * ratio:.1f} % (required: {100 * LEAST_RATIO:.0f} %), {errors} errors (required: 0)")
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} CPU cores")
    return int(ratio < LEAST_RATIO or errors > 0)


if __name__ == "__main__":
    sys.exit(main())
