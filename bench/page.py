"""The web page in a real browser, against the limits that it must keep: ``python -m bench.page --help``.

A server with 200 jobs, one of them with 5,000 evaluations, is opened with Chromium whose cache is empty. The benchmark
prints the time until the list of jobs is shown, what the first load transfers, the time from the record of an event to
its appearance, and the slowest request while the job with 5,000 evaluations is shown. The exit status is 1 if a limit
is exceeded.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.app import create_app
from api.routes.page import CHARTS
from api.server import Server, listen, url_of
from api.settings import Settings
from bench.dashboard import CHROMIUM_ARGUMENTS, chromium, new_job, prepared, record_search
from factor_search.spec import parse_spec
from storage.coordinators import CoordinatorStore
from storage.database import Database
from storage.evaluations import Batch, EvaluationStore
from storage.jobs import JobStore, Lease
from workers.policy import Policy

JOBS, EVALUATIONS, LOADS, EVENTS = 200, 5000, 3, 10
CONTENT_LIMIT, EVENT_LIMIT, REQUEST_LIMIT, TRANSFER_LIMIT = 1.0, 1.0, 0.3, 500_000
LISTED = "() => document.querySelectorAll('section:last-of-type tbody tr').length >= 50"
DRAWN = "() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4"
SHOWN_AT = """text => new Promise((resolve) => {
    const look = () => document.body.innerText.includes(text) ? resolve(Date.now()) : setTimeout(look, 5);
    look();
})"""


@dataclass
class Requests:
    """What a page asked for."""

    seconds: list[tuple[float, str]] = field(default_factory=list)
    bytes: int = 0
    chart_bytes: int = 0

    def watch(self, page: Any) -> None:
        """Note every request that ends from now on."""

        def ended(request: Any) -> None:
            sizes = request.sizes()
            size = sizes["responseBodySize"] + sizes["responseHeadersSize"]
            if request.url.endswith(CHARTS):
                self.chart_bytes += size
            else:
                self.bytes += size
                self.seconds.append(
                    (request.timing["responseEnd"] / 1000, request.url.partition("/v1/")[2] or request.url)
                )

        page.on("requestfinished", ended)


@contextlib.contextmanager
def served(database_url: str) -> Iterator[str]:
    """The whole service in this process but for the dashboard, on a free port."""
    policy = Policy((), allow_hub=True, allow_remote_code=False)
    app = create_app(Settings(database_url=database_url, policy=policy, loopback=True))
    ready = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        server = Server(app, log_level="warning", on_ready=ready.set, on_stop=lambda: None)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            ready.wait(60)
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A page of a browser with an empty cache."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="profile") as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium(), headless=True, args=CHROMIUM_ARGUMENTS
        )
        try:
            yield context.new_page()
        finally:
            context.close()


def record(database: Database, evaluations: int) -> Lease:
    """Record 200 jobs; the one that is returned runs, and has so many evaluations."""
    jobs = JobStore(database)
    for number in range(JOBS - 2):
        spec = {"name": f"job {number}", "model": "some/model", "data": ["books/*.txt"], "target_length": 1024}
        jobs.cancel(jobs.submit(parse_spec(spec | {"seed": number}))[0].id)
    jobs.submit(parse_spec({"name": "large", "model": "some/model", "data": ["books/*.txt"], "target_length": 1024}))
    claim = jobs.claim("bench", 3600)
    assert claim is not None
    EvaluationStore(database).start_search(claim[1], 1024, "large", prepared())
    record_search(database, claim[1], evaluations)
    new_job(database, "small")
    CoordinatorStore(database).report("bench", "host", 1, {"workers": 1, "alive": 1, "busy": 1})
    return claim[1]


def first_load(url: str) -> tuple[float, Requests]:
    """Seconds from the navigation to the list of jobs, as the browser measures them, and what was loaded for it."""
    requests = Requests()
    with browser() as page:
        requests.watch(page)
        page.goto(url, wait_until="commit")
        page.wait_for_function(LISTED, polling=10)
        seconds = page.evaluate("performance.now()") / 1000
        page.wait_for_load_state("networkidle")
    return seconds, requests


def watch(url: str, database: Database, lease: Lease) -> tuple[list[float], list[tuple[float, str]], float]:
    """Seconds from each event's record to its appearance, those of requests, and those until the charts were drawn."""
    store, delays, requests = EvaluationStore(database), list[float](), Requests()
    with browser() as page:
        requests.watch(page)
        page.goto(f"{url}/jobs/{lease.job_id}", wait_until="commit")
        page.wait_for_function(DRAWN, timeout=120_000)
        drawn = page.evaluate("performance.now()") / 1000
        page.get_by_text("live", exact=True).wait_for()
        for number in range(EVENTS):
            text = f"phase {number} of the benchmark"
            progress = {"phase": text, "share": number / EVENTS, "candidates": number}
            store.record({lease: Batch(events=[("progress", progress)], progress=progress)})
            recorded = time.time()
            delays.append(page.evaluate(SHOWN_AT, text) / 1000 - recorded)
            page.wait_for_timeout(700)
    return delays, requests.seconds, drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    given = parser.parse_args()
    if chromium() is None:
        print("no Chromium found (set $CHROMIUM)")
        return 1
    with tempfile.TemporaryDirectory() as folder, Database(f"sqlite:///{Path(folder) / 'jobs.db'}") as database:
        lease = record(database, given.evaluations)
        with served(database.url) as url:
            loads = [first_load(url) for _ in range(LOADS)]
            delays, seconds, drawn = watch(url, database, lease)
    content = statistics.median(load for load, _ in loads)
    transfer = max(requests.bytes for _, requests in loads)
    api = sorted((pair for pair in seconds if not pair[1].startswith("http") and "events" not in pair[1]), reverse=True)
    rows = [
        (f"first content with {JOBS} jobs, median of {LOADS}", content, CONTENT_LIMIT, "s"),
        ("first load without charts", transfer / 1000, TRANSFER_LIMIT / 1000, "kB"),
        (f"event to page, median of {EVENTS}", statistics.median(delays), EVENT_LIMIT, "s"),
        (f"event to page, slowest of {EVENTS}", max(delays), EVENT_LIMIT, "s"),
        (f"slowest of {len(api)} requests, {given.evaluations:,} evaluations", api[0][0], REQUEST_LIMIT, "s"),
    ]
    for what, value, limit, unit in rows:
        print(f"{what:55} {value:8.2f} {unit:3} (limit {limit:g} {unit})")
    print(f"charts of {given.evaluations:,} evaluations drawn after {drawn:.2f} s; the slowest request is {api[0][1]}")
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} CPU cores")
    return 0 if all(value <= limit for _, value, limit, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
