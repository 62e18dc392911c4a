"""The service under test: started, killed, watched from outside, and compared with undisturbed searches."""

import contextlib
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from bench.faults import processes, stepped_clock, worker
from bench.faults.databases import DatabaseServer
from bench.faults.disks import Disk
from bench.ports import free_port
from bench.stub import ONE_BY_ONE
from factor_search.report.document import build_factors_file
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobWatcher, search_and_measure
from factor_search.spec import parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files
from storage.database import Database
from storage.errors import StorageError
from storage.evaluations import SHARED, EvaluationStore
from storage.jobs import JobStore
from storage.schema import evaluations
from storage.states import ENDED

MARK = "FACTOR_SEARCH_BENCH_MARK"
"""Environment variable that all processes of the service inherit."""
PATIENCE_SECONDS = 120.0
"""A service that has not recorded anything for so long after a fault is stuck."""
JOBS = 2
"""So many jobs always run."""
BUDGET = 300
PATTERNS = {
    "coordinator": "bench.faults.processes coordinate",
    "projector": "storage.dashboard.projector",
    "raylet": "/raylet/raylet",
    "gcs": "gcs_server",
    "worker": "ray::FaultWorker",
}
"""What is in the command line of each kind of process."""


class StuckError(Exception):
    """The service has not settled."""


@dataclass
class Health:
    """What ``/healthz`` answered while the server was up."""

    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.seconds:
            return "/healthz was never asked"
        median, worst = statistics.median(self.seconds), max(self.seconds)
        return f"/healthz: median {1000 * median:.0f} ms, worst {1000 * worst:.0f} ms of {len(self.seconds)}"


class Service:
    """One service with its folders and its database, and the jobs that it is given."""

    def __init__(
        self,
        folder: Path,
        server: DatabaseServer,
        disks: dict[str, Disk],
        rng: random.Random,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Prepare folders, models and documents.

        Args:
            folder: for everything that is on no disk of its own.
            server: the database.
            disks: of the folders ``database``, ``work`` and ``cache``.
            rng: seeds of jobs.
            patience: seconds that anything may take.
        """
        self.patience = patience
        self.folder, self.server, self.disks, self._rng = folder, server, disks, rng
        self.mark = secrets.token_hex(8)
        self.port = free_port()
        self.root = folder / "root"
        self.clock, self.twice, self.started = folder / "clock", folder / "twice", folder / "started.log"
        self.log = folder / "service.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.health = Health()
        self.jobs: dict[str, dict[str, Any]] = {}
        """Specifications of the jobs that must end as if undisturbed, by id."""
        self.expected: dict[str, Callable[[], dict[str, Any]]] = {}
        """Factors that a job must have if it finishes; computed when asked for."""
        self.recorded: dict[str, tuple[float, float]] = {}
        """When each evaluation was recorded, by the database's clock, and when it was first seen, by ours."""
        self.lost: set[str] = set()
        self.twice_between: list[tuple[float, float]] = []
        self.root.mkdir()
        for name in (worker.STUB, worker.HOSTILE):
            shutil.copytree(CHECKPOINT, self.root / name)
        (self.root / "documents").mkdir()
        for file in held_out_files()[:6]:
            shutil.copy(file, self.root / "documents" / f"{file.stem}.txt")
        self.born = time.monotonic()
        self._watching = threading.Event()
        threading.Thread(target=self._watch_health, daemon=True).start()

    # Processes.

    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("FACTOR_SEARCH_")}
        ours |= {MARK: self.mark, stepped_clock.FILE: str(self.clock), processes.TWICE: str(self.twice)}
        ours |= {worker.STARTED: str(self.started), "FACTOR_SEARCH_CACHE": str(self.disks["cache"].folder)}
        ours |= {"FACTOR_SEARCH_DATABASE": self.server.url, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        # Ray's driver gives up on its lost head after this time; its default is a minute
        return ours | {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "bench.faults.processes", "serve", "--port", str(self.port), "--no-hub"]
        command += ["--root", str(self.root), "--work", str(self.disks["work"].folder), "--workers", "2"]
        command += ["--cpus-per-worker", "0.5", "--evaluation-timeout", "6"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait(lambda: self.get("/healthz") is not None or self.process_ended(), "the server did not start")

    def process_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def restart(self) -> None:
        """Start it again if it is not there, as an operator's supervisor would."""
        if self.process is None or self.process_ended():
            self.start()

    def stop(self) -> None:
        """Stop it in order."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise StuckError("the service did not stop within 40 s of SIGTERM") from None

    def find(self, kind: str) -> list[psutil.Process]:
        """Our processes of a kind."""
        return [process for process, line in self._ours() if PATTERNS[kind] in line]

    def orphans(self, seconds: float = 20.0) -> list[str]:
        """Command lines of processes that are still there so long after the service has ended."""
        until = time.monotonic() + seconds
        while (left := [line for _, line in self._ours()]) and time.monotonic() < until:
            time.sleep(0.2)
        return left

    def _ours(self) -> Iterator[tuple[psutil.Process, str]]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    yield process, line

    def kill(self, kind: str, number: int = signal.SIGKILL) -> str:
        """Send a signal to a process of a kind, chosen at random; returns what was done."""
        if kind == "serve":
            assert self.process is not None
            self.process.send_signal(number)
            self.process.wait()
            return "the server was killed"
        self.wait(lambda: self.find(kind), f"there is no {kind}")
        found = sorted(self.find(kind), key=lambda process: process.pid)
        victim = found[self._rng.randrange(len(found))]
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
        return f"{kind} {victim.pid} received {signal.Signals(number).name}"

    # Looking from outside.

    def get(self, path: str, seconds: float = 5.0) -> httpx2.Response | None:
        with contextlib.suppress(httpx2.HTTPError, OSError):
            return httpx2.get(f"http://127.0.0.1:{self.port}{path}", timeout=seconds)
        return None

    def is_ready(self) -> bool:
        answer = self.get("/readyz")
        return answer is not None and answer.status_code == 200 and answer.json()["coordinators"] >= 1

    def said_since(self, size: int) -> str:
        with self.log.open("rb") as log:
            log.seek(size)
            return log.read().decode(errors="replace")

    def wait(self, condition: Callable[[], Any], otherwise: str, seconds: float | None = None) -> None:
        seconds = self.patience if seconds is None else seconds
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise StuckError(f"{otherwise} within {seconds:g} s")
            time.sleep(0.1)

    def _watch_health(self) -> None:
        with httpx2.Client(timeout=60.0) as client:
            while not self._watching.wait(0.25):
                began = time.monotonic()
                with contextlib.suppress(httpx2.HTTPError, OSError):
                    client.get(f"http://127.0.0.1:{self.port}/healthz")
                    self.health.seconds.append(time.monotonic() - began)

    # Jobs.

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        with Database(self.server.url, migrate=False) as database:
            yield database

    def specification(self, model: str, **changes: Any) -> dict[str, Any]:
        strategy = ONE_BY_ONE
        documents = {"search_documents": 1, "validation_documents": 1, "held_out_documents": 1}
        return {
            "name": f"{model} {len(self.jobs)}",
            "model": {"id": str(self.root / model), "device": "cpu"},
            "data": {"files": [str(self.root / "documents" / "*.txt")], **documents},
            "target_length": 1024,
            "strategy": strategy,
            "budget": BUDGET,
            "seed": self._rng.randrange(2**31),
        } | changes

    def submit(self, document: dict[str, Any]) -> str:
        """Submit a job over HTTP, again and again with the same idempotency key until the server answers."""
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        until = time.monotonic() + self.patience
        while True:
            with contextlib.suppress(httpx2.HTTPError, OSError):
                answer = httpx2.post(
                    f"http://127.0.0.1:{self.port}/v1/jobs", json=document, headers=headers, timeout=20.0
                )
                if answer.status_code in (200, 201):
                    return str(answer.json()["id"])
                if answer.status_code < 500:
                    raise RuntimeError(answer.text)
            if time.monotonic() > until:
                raise StuckError("no job could be submitted")
            self.restart()
            time.sleep(0.5)

    def keep_busy(self) -> None:
        """Submit jobs until enough of them run."""
        for _ in range(JOBS - len(self.unfinished())):
            self.submit_stub(worker.STUB)

    def submit_stub(self, model: str) -> None:
        document = self.specification(model)
        id = self.submit(document)
        self.jobs[id] = document
        self.expected[id] = lambda: undisturbed(document)

    def unfinished(self) -> list[str]:
        try:
            with self.database() as database:
                store = JobStore(database)
                return [id for id in self.jobs if store.get(id).state not in ENDED]
        except StorageError:
            return list(self.jobs)[-JOBS:]

    def look(self) -> int:
        """Note what is recorded, and what no longer is; returns how many evaluations there are."""
        with self.database() as database, database.reading() as connection:
            shared = select(evaluations.c.key, evaluations.c.recorded_at).where(evaluations.c.scope == SHARED)
            rows = connection.execute(shared).all()
        there, at = {row.key: row.recorded_at for row in rows}, time.monotonic()
        self.lost |= {key for key, (recorded_at, _) in self.recorded.items() if there.get(key) != recorded_at}
        for key, recorded_at in there.items():
            self.recorded.setdefault(key, (recorded_at, at))
        return len(there)

    def settle(self) -> float:
        """Wait until the service is ready and records again; returns after how many seconds."""
        began = time.monotonic()
        self.restart()
        self.wait(self.is_ready, "it is not ready")
        before: list[int] = []

        def gets_on() -> bool:
            with contextlib.suppress(StorageError, SQLAlchemyError):
                with self.database() as database, database.reading() as connection:
                    before.append(connection.scalar(select(func.count()).select_from(evaluations)) or 0)
                return before[-1] > before[0] or not self.unfinished()
            return False

        self.wait(gets_on, "nothing is recorded")
        self.look()
        return time.monotonic() - began

    def spare(self) -> None:
        """Wait until no job has lost a coordinator before it recorded anything: one that loses two in a row fails."""

        def is_spared() -> bool:
            with contextlib.suppress(StorageError, SQLAlchemyError), self.database() as database:
                store = JobStore(database)
                if all(store.get(id).claims_in_vain < 2 for id in self.unfinished()):
                    return True
            self.restart()
            return False

        self.wait(is_spared, "a job whose coordinator was lost records nothing")

    def finish(self) -> None:
        """Wait until all jobs have ended."""
        self.wait(lambda: not self.unfinished(), "jobs have not ended", seconds=3 * self.patience)
        self.look()

    def repeated(self) -> list[str]:
        """Evaluations that were started although they were seen to be recorded before, and when."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in self.started.read_text().splitlines():
                word, _, key = line.partition(" ")
                began, seen = float(word), self.recorded.get(key)
                if seen is None or began <= seen[1]:
                    continue
                if not any(since <= began <= until for since, until in self.twice_between):
                    at, before = began - self.born, began - seen[1]
                    found.append(f"evaluation {key} began at {at:.1f} s, {before:.1f} s after it was seen recorded")
        return found

    def differing(self) -> list[str]:
        """Jobs that did not end as if undisturbed, and how they ended."""
        wrong = []
        with self.database() as database:
            store, records = JobStore(database), EvaluationStore(database)
            for id, document in self.jobs.items():
                job, factors = store.get(id), store.document(id, "factors")
                if job.state != "finished" or factors is None:
                    wrong.append(f"{document['name']} ended as {job.state}: {job.error}")
                elif comparable(factors) != self.expected[id]():
                    wrong.append(f"{document['name']} has other factors than the undisturbed search")
                else:
                    rows = records.of_job(id, limit=10_000)
                    if [(row.number, row.state) for row in rows] != [(n, "done") for n in range(len(rows))]:
                        wrong.append(f"{document['name']} has candidates that are not done")
        return wrong

    def close(self) -> None:
        """Kill what is left of it."""
        self._watching.set()
        for process, _ in self._ours():
            with contextlib.suppress(psutil.Error):
                process.kill()


def comparable(factors: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in factors.items() if key != "sha256"}


def undisturbed(document: dict[str, Any]) -> dict[str, Any]:
    """The factors file of the same search in this process, without any service."""
    spec = parse_spec(document)
    evaluator = worker.Undisturbed(Path(spec.model.id).name)
    there = worker.prepared(spec)
    found = search_and_measure(SearchProblem.of(spec, there.geometry), there.samples, evaluator, JobWatcher())
    return comparable(build_factors_file(found).as_json())
