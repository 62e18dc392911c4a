"""Optuna's dashboard on a study of 1,500 trials, in a real browser: ``python -m bench.dashboard --help``.

The benchmark records a search's candidates as a coordinator would, projects them, serves them, and opens the page with
Chromium. It prints the speed of the projection, the size and time of the page's requests, and the time until its plots
are drawn, with their limits. The exit status is 1 if a limit is exceeded.
"""

import argparse
import contextlib
import gzip
import math
import os
import random
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from api.dashboard import Dashboard
from bench.scratch import scratch_database
from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OK, Evaluation
from factor_search.spec import parse_spec
from storage.dashboard.address import optuna_url_beside
from storage.dashboard.projection import Projection
from storage.database import Database
from storage.evaluations import Batch, Candidate, Computed, EvaluationStore
from storage.jobs import JobStore, Lease

TRIALS, PAIRS, DOCUMENTS = 1500, 32, 4
FIRST_LOAD_LIMIT, POLL_LIMIT = 3.0, 0.3
POLLS = 5
LOADS = 3
OTHER_TRIALS = 20
POLL_WAIT_SECONDS = 25
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DRAWN = """count => {
    const points = document.querySelectorAll('.js-plotly-plot .scatterlayer .points path').length;
    const lines = document.querySelectorAll('.js-plotly-plot .scatterlayer .lines path').length;
    return points >= count && lines >= 6;
}"""
"""True once the history has its points and our figures have their curves."""


def chromium() -> str | None:
    """The browser's executable: ``$CHROMIUM``, or the first on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def new_job(database: Database, name: str) -> Lease:
    """A claimed job whose stage has started."""
    spec = {"name": name, "model": "some/model", "data": ["books/*.txt"], "target_length": 1024}
    jobs = JobStore(database)
    jobs.submit(parse_spec(spec | {"budget": {"candidates": TRIALS}}))
    claim = jobs.claim("bench", 3600)
    assert claim is not None
    job, lease = claim
    EvaluationStore(database).start_search(lease, 1024, f"{job.name} · {job.id}", prepared())
    return lease


def prepared() -> dict[str, Any]:
    """What a coordinator records when a stage starts."""
    curves = {"yarn": 2.0, "ntk": 1.0, "pi": 0.0, "ntk-critical": 1.2, "llama3": 3.0}
    closed_forms = {
        name: Factors.of([4 ** ((i / (PAIRS - 1)) ** power) for i in range(PAIRS)]).as_json()
        for name, power in curves.items()
    }
    return {
        "geometry": {
            "pairs": PAIRS,
            "rotary_dim": 2 * PAIRS,
            "original_length": 256,
            "critical_dimension": 26,
            "architecture": "LlamaForCausalLM",
        },
        "closed_forms": closed_forms,
        "documents": {"search": [f"books/{n}.txt" for n in range(DOCUMENTS)]},
        "space": {"initial_tokens": [0, 1, 4, 16], "attention_factors": [1.0, 1.2], "lower": 1.0, "upper": 16.0},
    }


def record_search(database: Database, lease: Lease, trials: int) -> float:
    """Record a search as a coordinator would, mostly in small batches, and return the seconds it took."""
    store, draw = EvaluationStore(database), random.Random(0)
    start = time.perf_counter()
    for first in range(0, trials, 16):
        batch = Batch()
        for number in range(first, min(first + 16, trials)):
            candidate = proposed(number, draw)
            if draw.random() < 0.02:
                batch.withdrawn.append(candidate)
                continue
            batch.computed.append(Computed(evaluation=evaluated(candidate, draw, trials), worker="host:1", attempts=1))
            batch.done.append((candidate, batch.computed[-1].evaluation.outcome, False))
        store.record({lease: batch})
    return time.perf_counter() - start


def proposed(number: int, draw: random.Random) -> Candidate:
    """Random monotone factors."""
    steps = [draw.expovariate(1.0) for _ in range(PAIRS)]
    factors = [math.exp(2.3 * sum(steps[: i + 1]) / sum(steps)) for i in range(PAIRS)]
    found = Factors.of(factors, draw.choice([0, 1, 4, 16]), draw.uniform(1.0, 1.2))
    return Candidate(part="search", number=number, generation=number // 16, key=secrets.token_hex(32), factors=found)


def evaluated(candidate: Candidate, draw: random.Random, trials: int) -> Evaluation:
    """Losses that improve in the course of a search; one candidate in fifty diverges."""
    fine = draw.random() > 0.02
    level = 1.8 + 0.4 * math.exp(-4 * candidate.number / trials) + draw.expovariate(20)
    losses = tuple(level + draw.gauss(0, 0.05) for _ in range(DOCUMENTS))
    return Evaluation(
        key=candidate.key,
        factors=candidate.factors,
        part="search",
        outcome=OK if fine else DIVERGED,
        losses=losses if fine else (),
        tokens=(1023,) * DOCUMENTS if fine else (),
        losses_at={},
        seconds=0.5,
    )


@contextlib.contextmanager
def served(optuna_url: str) -> Iterator[str]:
    """The dashboard in this process, on a free port of this machine."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(Dashboard(optuna_url), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@dataclass
class Browsed:
    """What a browser with an empty cache measured."""

    first_load_seconds: float
    """Seconds from opening the URL to the drawn plots."""
    requests: list[tuple[str, float]] = field(default_factory=list)
    """Seconds of the requests for the study's trials: the first one, then the page's polls."""


def browse(address: str, study: int, trials: int, executable: str, polls: int, screenshot: Path | None) -> Browsed:
    """Open a study's page, wait for its polls, and take a screenshot."""
    from playwright.sync_api import Request, sync_playwright

    with tempfile.TemporaryDirectory(prefix="profile") as profile, sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            headless=True,
            args=CHROMIUM_ARGUMENTS,
            viewport={"width": 1400, "height": 900},
        )
        try:
            page = browser.new_page()
            seen: list[tuple[str, float]] = []

            def finished(request: Request) -> None:
                if f"/api/studies/{study}?" in request.url:
                    seen.append((request.url.removeprefix(address), request.timing["responseEnd"] / 1000))

            page.on("requestfinished", finished)
            start = time.perf_counter()
            page.goto(f"{address}/dashboard/studies/{study}", wait_until="commit")
            page.wait_for_function(DRAWN, arg=trials * 0.9, polling=50, timeout=60_000)
            browsed = Browsed(time.perf_counter() - start)
            end = time.monotonic() + POLL_WAIT_SECONDS * polls
            while len(seen) < 1 + polls and time.monotonic() < end:
                page.wait_for_timeout(200)
            if screenshot is not None:
                page.set_viewport_size({"width": 1400, "height": 2600})
                page.wait_for_timeout(1500)
                page.screenshot(path=screenshot)
            browsed.requests = seen
            return browsed
        finally:
            browser.close()


def fetched(address: str, study: int, after: int) -> tuple[float, int, int]:
    """Seconds, bytes and bytes on the wire of one request for a study."""
    start = time.perf_counter()
    with httpx2.stream("GET", f"{address}/api/studies/{study}?after={after}", timeout=60) as response:
        raw = b"".join(response.iter_raw())
        seconds = time.perf_counter() - start
        packed = response.headers.get("content-encoding") == "gzip"
    return seconds, len(gzip.decompress(raw)) if packed else len(raw), len(raw)


def measure(kind: str, trials: int, others: int, screenshot: Path | None) -> bool:
    """Print the figures for one kind of database; true if all are within their limits."""
    with scratch_database(kind) as url, Database(url) as database:
        optuna_url = optuna_url_beside(url)
        lease = new_job(database, "llama-4x")
        recording = record_search(database, lease, trials)
        with Projection(database, optuna_url) as projection:
            start = time.perf_counter()
            while projection.project(lease.job_id):
                pass
            projecting = time.perf_counter() - start
            projection.summarise(lease.job_id)
            for number in range(others):  # like a service after some use
                other = new_job(database, f"other-{number}")
                record_search(database, other, OTHER_TRIALS)
                projection.project(other.job_id)
                projection.summarise(other.job_id)
        print(f"{kind}: {trials} trials beside {others} other studies")
        print(f"  recorded at {trials / recording:,.0f}/s, projected at {trials / projecting:,.0f} trials/s")
        with served(optuna_url) as address:
            seconds, size, wire = fetched(address, 1, 0)
            print(
                f"  first request for the trials {seconds:.2f} s, {size / 1e6:.2f} MB, {wire / 1e6:.2f} MB on the wire"
            )
            polls = [fetched(address, 1, trials)[0] for _ in range(POLLS)]
        slowest = max(polls)
        print(f"  a poll: {statistics.median(polls):.3f} s, at most {slowest:.3f} s (limit {POLL_LIMIT} s)")
        fine = slowest <= POLL_LIMIT
        executable = chromium()
        if executable is None:
            print("  no Chromium found (set $CHROMIUM): the page was not measured")
            return False
        loads, own_polls = [], []
        for attempt in range(LOADS):
            with served(optuna_url) as address:  # a new server, without anything in memory
                browsed = browse(address, 1, trials, executable, int(attempt == 0), None if attempt else screenshot)
            loads.append(browsed.first_load_seconds)
            own_polls += [seconds for _, seconds in browsed.requests[1:]]
        with served(optuna_url) as address:  # the cost of an almost empty page
            floor = browse(address, 2, OTHER_TRIALS, executable, 0, None).first_load_seconds if others else math.nan
        first_load = statistics.median(loads)
        each = ", ".join(f"{load:.2f}" for load in loads)
        print(f"  page drawn after {first_load:.2f} s, median of {each} (limit {FIRST_LOAD_LIMIT} s)")
        print(f"  the page of a study of {OTHER_TRIALS} trials: {floor:.2f} s")
        print(
            f"  the page's own polls: {', '.join(f'{seconds:.3f} s' for seconds in own_polls)} (limit {POLL_LIMIT} s)"
        )
        print(f"  load of the machine {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} CPU cores")
        return fine and first_load <= FIRST_LOAD_LIMIT and max(own_polls, default=0.0) <= POLL_LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--others", type=int, default=50, help="other studies in the same tables")
    parser.add_argument("--screenshot", type=Path, help="save a screenshot of the page here")
    given = parser.parse_args()
    kinds = ["sqlite", "postgresql"] if given.database == "both" else [given.database]
    within = [measure(kind, given.trials, given.others, given.screenshot) for kind in kinds]
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
