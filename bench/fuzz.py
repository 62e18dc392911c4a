"""Send generated requests to every operation of the REST interface, with keys and without, and check each answer.

Schemathesis generates requests from the OpenAPI description, valid ones and invalid ones. Ids in paths are often those
of jobs and plans in many states, and bodies are often valid specifications with a few generated changes, so that
requests pass the first check. No answer may be a 5xx, or have a status, a media type, headers or content that the
description does not have. The server is a process of its own, on loopback, with an SQLite database in a scratch folder.

    python -m bench.fuzz [--requests 50000] [--seed 0] [--operation "POST /v1/jobs"]

The same seed sends the same requests, except for the ids that the server makes.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Err
from schemathesis.specs.openapi import checks

from api.schemas import Event
from bench.stub import ONE_BY_ONE, StubWorker
from bench.thread_backend import ThreadBackend
from factor_search.plan.spec import parse_plan
from factor_search.spec import parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files
from storage.database import Database
from storage.jobs import JobStore
from storage.keys import SCOPES, KeyStore
from storage.plans import PlanStore
from storage.states import ENDED
from workers.coordinator import Coordinator
from workers.policy import Policy

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
AT_ONCE = 250
"""Requests of one run of hypothesis, which slows down with their number."""
SECONDS = 30.0
"""Without an answer for so long, a request counts as hanging."""
DOCUMENTS = {"search_documents": 1, "validation_documents": 1, "held_out_documents": 1}


def job_document(**changes: Any) -> dict[str, Any]:
    data = {"files": [str(file) for file in held_out_files()[:4]], **DOCUMENTS}
    strategy = ONE_BY_ONE | {"population": 8, "parents": 4, "mutants": 4, "crossovers": 4}
    document = {"name": "fuzz", "model": str(CHECKPOINT), "data": data, "target_length": 1024, "strategy": strategy}
    return document | {"budget": 12} | changes


def plan_document(**changes: Any) -> dict[str, Any]:
    search = {"kind": "search", "target_length": 1024, "strategy": "evolution", "budget": 8}
    document = {name: value for name, value in job_document().items() if name in ("name", "model", "data")}
    return document | {"stages": [search]} | changes


WAITING = [{"kind": "search", "target_length": 1024, "budget": 8}, {"kind": "await_checkpoint"}]
SUBMITTED = {"/v1/jobs": job_document(), "/v1/plans": plan_document()}


def fill(url: str, folder: Path) -> dict[str, list[str]]:
    """Jobs and plans in many states; returns their ids, by the name of the parameter that they are for."""
    with Database(url) as database:
        jobs, plans = JobStore(database), PlanStore(database)

        def submit_plan(**changes: Any) -> str:
            plan = parse_plan(plan_document(**changes)).expanded()
            stages = [(str(stage.name), stage.kind) for stage in plan.stages or ()]
            return plans.submit(name=plan.name, spec=plan.model_dump(mode="json"), stages=stages)[0].id

        def job_ids(state: str, **changes: Any) -> str:
            job, _ = jobs.submit(parse_spec(job_document(**changes)))
            if state != "finished":
                getattr(jobs, state)(job.id)
            return job.id

        of_jobs = [job_ids(state, seed=n) for n, state in enumerate(("finished", "finished", "pause", "cancel"))]
        of_jobs.append(job_ids("finished", target_length=128))  # below the original length: it fails
        of_plans = [submit_plan(), submit_plan(stages=WAITING), submit_plan(seed=3), submit_plan(seed=4)]
        plans.pause(of_plans[2])
        plans.cancel(of_plans[3])
        policy = Policy((folder,), allow_hub=False, allow_remote_code=False, work_folder=folder / "work")
        coordinator = Coordinator(database, ThreadBackend(StubWorker, 2), policy=policy)
        thread = threading.Thread(target=coordinator.run, daemon=True)
        thread.start()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            states = {jobs.get(id).state for id in (of_jobs[0], of_jobs[1], of_jobs[4])}
            states |= {plans.get(of_plans[0]).state}
            if states <= set(ENDED) and plans.get(of_plans[1]).state in ("waiting", *ENDED):
                break
            time.sleep(0.2)
        coordinator.shut_down()
        thread.join()
        queued = [jobs.submit(parse_spec(job_document(seed=100 + n)))[0].id for n in range(3)]
        shown = [jobs.get(id).state for id in of_jobs] + [plans.get(id).state for id in of_plans]
        print(f"jobs and plans to ask about: {', '.join(shown)}", flush=True)
        return {"job_id": of_jobs + queued, "plan_id": [*of_plans, submit_plan(seed=5)]}


@contextlib.contextmanager
def serving(url: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server without coordinator, and its process."""
    command = [sys.executable, "-m", "api", "serve", "--port", "0", "--no-coordinator", "--no-dashboard", "--no-hub"]
    command += ["--database", url, "--root", str(folder), "--work", str(folder / "work"), "--stop-at-end-of-input"]
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line}{log.read_text()}")
        yield found[0].rstrip("/"), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)
        process.stdin.close()
        process.stdout.close()
        if "Traceback" in (said := log.read_text()):
            print(f"the server's log has a traceback:\n{said[-4000:]}", file=sys.stderr)


@dataclasses.dataclass
class Seen:
    """What came of the requests."""

    statuses: Counter[tuple[str, int]] = dataclasses.field(default_factory=Counter)
    """By operation and status; 0 is no answer."""
    faults: dict[tuple[str, str], list[str]] = dataclasses.field(default_factory=dict)
    """By operation and what is wrong: the requests as curl commands."""
    slowest: tuple[float, str] = (0.0, "")


@dataclasses.dataclass
class Fuzzer:
    """Sends requests to one server."""

    address: str
    ids: dict[str, list[str]]
    keys: list[str | None]
    """One is drawn for each request; None sends none."""
    seen: Seen
    session: requests.Session = dataclasses.field(default_factory=requests.Session)

    def send(self, case: Any, number: int) -> None:
        """Change a generated request by a number, send it and check the answer."""
        operation = f"{case.method} {case.operation.path}"
        number, key = divmod(number, len(self.keys))
        for name in case.path_parameters:
            number, choice = divmod(number, 8)
            if choice and name in self.ids:
                number, which = divmod(number, len(self.ids[name]))
                case.path_parameters[name] = self.ids[name][which]
        number, choice = divmod(number, 2)
        if choice and case.method == "POST" and case.operation.path in SUBMITTED:
            case.body = changed(SUBMITTED[case.operation.path], case.body, number)
            case.media_type = "application/json"
        headers = {} if self.keys[key] is None else {"Authorization": f"Bearer {self.keys[key]}"}
        began = time.monotonic()
        try:
            response = case.call(base_url=self.address, session=self.session, headers=headers, timeout=SECONDS)
        except requests.exceptions.InvalidHeader:
            return  # it cannot be sent
        except requests.RequestException as error:
            self.seen.statuses[operation, 0] += 1
            self._note(operation, f"no answer: {type(error).__name__}: {str(error)[:200]}", case)
            return
        took = time.monotonic() - began
        if "events" not in operation:  # a stream stays open
            self.seen.slowest = max(self.seen.slowest, (took, operation))
        self.seen.statuses[operation, response.status_code] += 1
        streams = "text/event-stream" in str(response.headers.get("content-type"))
        if streams:
            self._check_events(operation, response.text, case)
        try:
            case.validate_response(response, checks=CHECKS[:-1] if streams else CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._note(operation, f"{failure.title} ({response.status_code}): {str(failure.message)[:300]}", case)

    def _check_events(self, operation: str, text: str, case: Any) -> None:
        """The description cannot say of which schema the data of a stream's events are."""
        for data in re.findall(r"^data: (.*)$", text, re.MULTILINE):
            try:
                Event.model_validate_json(data)
            except ValueError as error:
                self._note(operation, f"an event is not as described: {error}", case)

    def _note(self, operation: str, what: str, case: Any) -> None:
        self.seen.faults.setdefault((operation, what), []).append(case.as_curl_command()[:2000])


def changed(valid: dict[str, Any], generated: Any, number: int) -> dict[str, Any]:
    """A valid document, in which some values are those of a generated one."""
    document = copy.deepcopy(valid)
    if isinstance(generated, dict):
        for place, (name, value) in enumerate(sorted(generated.items(), key=lambda item: str(item[0]))):
            if number >> place & 1:
                document[name] = value
    return document


def fuzz(fuzzer: Fuzzer, operation: Any, mode: GenerationMode, number: int, first_seed: int) -> None:
    """So many requests to one operation."""
    for start in range(0, number, AT_ONCE):
        requests_now = min(AT_ONCE, number - start)

        @seed(first_seed + start)
        @settings(
            max_examples=requests_now,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), number=st.integers(0, 2**40))
        def send(case: Any, number: int) -> None:
            fuzzer.send(case, number)

        try:
            send()
        except Exception as error:  # of an operation that cannot be invalid
            if type(error).__name__ not in ("Unsatisfiable", "SkipTest", "Skipped"):
                raise
            return


def report(seen: Seen) -> int:
    """Print the counts and the faults; returns how many faults there are."""
    operations = sorted({operation for operation, _ in seen.statuses})
    codes = sorted({status for _, status in seen.statuses})
    width = max(map(len, operations))
    print(f"{'operation':{width}}" + "".join(f"{code or 'none':>7}" for code in codes) + f"{'all':>8}")
    for operation in operations:
        counts = [seen.statuses[operation, code] for code in codes]
        print(f"{operation:{width}}" + "".join(f"{count or '':>7}" for count in counts) + f"{sum(counts):>8}")
    print(f"{seen.statuses.total()} requests; the slowest took {seen.slowest[0]:.2f} s: {seen.slowest[1]}")
    for (operation, what), cases in seen.faults.items():
        print(f"\n{len(cases)} x {operation}: {what}\n  {cases[0]}")
    return sum(map(len, seen.faults.values()))


def run(total: int, first_seed: int, only: str | None) -> int:
    """Send the requests; returns how many answers are wrong."""
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name)
        os.environ["FACTOR_SEARCH_CACHE"] = str(folder / "cache")
        url = f"sqlite:///{folder / 'jobs.db'}"
        ids = fill(url, folder)
        with serving(url, folder) as (address, process):
            schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
            operations = []
            for found in schema.get_all_operations():
                if isinstance(found, Err):
                    raise found.err()
                operations.append(found.ok())
            operations = [one for one in operations if only in (None, f"{one.method.upper()} {one.path}")]
            if not operations:
                raise SystemExit(f"there is no operation {only}")
            keys: list[str | None] = [None] * 49 + ["wrong"]
            largest, rounds = 0, itertools.count()
            for goal in (total // 2, total):  # before there are keys, and after
                fuzzer = Fuzzer(address, ids, keys, seen)
                while (left := goal - seen.statuses.total()) > 0:
                    share, first = 1 + left // (2 * len(operations)), first_seed + 1_000_000_000 * next(rounds)
                    for number, operation in enumerate(operations):
                        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                            fuzz(fuzzer, operation, mode, share, first + 1_000_000 * number)
                        largest = max(largest, process.memory_info().rss)
                    print(f"{seen.statuses.total()} requests so far", flush=True)
                with Database(url) as database:
                    made = [KeyStore(database).create(scope, [scope])[1] for scope in SCOPES]
                # few wrong ones, since a server is slow to answer them, and last, since small numbers are drawn most
                keys = [*made * 15, *[None] * 4, "wrong"]
            print(f"memory of the server: {largest / 1e6:.0f} MB at most, {process.num_threads()} threads at the end")
    return report(seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operation", help="only this one, such as 'POST /v1/jobs'")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")
    wrong = run(arguments.requests, arguments.seed, arguments.operation)
    print(f"{wrong} answers are wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
