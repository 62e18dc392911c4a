"""How busy 64 stub workers are, and how many evaluations a second are recorded.

Only the model is replaced, by workers that sleep. The jobs in the database, the coordinator, the strategies with
generations of 64, the pool and the recorder are real. Several jobs run at once, so that a worker has other work at the
end of a generation.

    python -m bench.stub_load [--postgresql] [--ray] [--workers 64] [--jobs 4] [--generations 12] [--sleep 0.12]
"""

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from bench.scratch import scratch_database
from bench.stub import StubWorker, stub_spec
from bench.thread_backend import ThreadBackend
from storage.database import Database
from storage.jobs import JobStore
from storage.schema import candidates, evaluations
from workers.__main__ import SWITCH_SECONDS
from workers.backend import WorkerBackend
from workers.coordinator import Coordinator
from workers.policy import Policy
from workers.pool import Pool

GENERATION = 64
BUSY, RATE = 0.97, 500.0
"""The requirements."""


@dataclass
class Load:
    """The measurements."""

    recorded: int
    """Evaluations recorded while all jobs were searching: from the last start to the first end."""
    seconds: float
    """Duration of that time."""
    busy: float
    """Share of that time that the workers spent evaluating."""

    @property
    def rate(self) -> float:
        return self.recorded / self.seconds


def run(database: Database, backend: WorkerBackend, *, jobs: int, generations: int) -> Load:
    """Submit jobs and run them to their ends."""
    store = JobStore(database)
    budget = GENERATION * generations
    evolution = {"kind": "evolution", "population": GENERATION, "mutants": GENERATION // 2}
    strategy = evolution | {"crossovers": GENERATION // 2, "generations": 1000}
    specs = [stub_spec(name=f"load {n}", seed=n, strategy=strategy, budget=budget) for n in range(jobs)]
    ids = [store.submit(spec)[0].id for spec in specs]
    coordinator = Coordinator(database, backend, policy=Policy((Path("/"),), True, True), jobs=jobs)
    start_all(coordinator._pool, backend)
    thread = threading.Thread(target=coordinator.run, daemon=True)
    thread.start()
    while any(store.get(job_id).state not in ("finished", "failed") for job_id in ids):
        time.sleep(0.5)
    failed = [job.error for job in (store.get(job_id) for job_id in ids) if job.state != "finished"]
    coordinator.shut_down()
    thread.join()
    if failed:
        raise RuntimeError(failed[0])
    return measure(database, ids, backend.capacity().workers)


def start_all(pool: Pool, backend: WorkerBackend) -> None:
    """Wait until all workers are up, because starting processes is not measured."""

    class Nobody:
        def event(self, kind: str, data: dict[str, Any]) -> None:
            pass

    pool.join("start", stub_spec().model, Nobody())  # type: ignore[arg-type]
    while pool.status()["alive"] < backend.capacity().workers:
        time.sleep(0.1)
    pool.leave("start")


def measure(database: Database, ids: list[str], workers: int) -> Load:
    """Compute the load from the stored evaluations: when each was recorded and how long it took."""
    joined = candidates.join(evaluations, candidates.c.key == evaluations.c.key)
    columns = (candidates.c.job_id, candidates.c.part, evaluations.c.recorded_at, evaluations.c.seconds)
    with database.reading() as connection:
        rows = connection.execute(select(*columns, evaluations.c.key).select_from(joined)).all()
    searched = [row for row in rows if row.part == "search"]
    ended = {row.key: row for row in searched}.values()  # each evaluation once
    began = {job: min(row.recorded_at - row.seconds for row in searched if row.job_id == job) for job in ids}
    done = {job: max(row.recorded_at for row in searched if row.job_id == job) for job in ids}
    since, until = max(began.values()), min(done.values())
    overlaps = (min(row.recorded_at, until) - max(row.recorded_at - row.seconds, since) for row in ended)
    busy = sum(overlap for overlap in overlaps if overlap > 0)
    recorded = sum(since <= row.recorded_at <= until for row in ended)
    return Load(recorded, until - since, busy / (workers * (until - since)))


@contextlib.contextmanager
def backend_of(engine: str, workers: int, sleep: float) -> Iterator[WorkerBackend]:
    """Threads, or Ray actors that share the CPU cores."""
    StubWorker.mean_seconds = sleep
    if engine == "threads":
        backend: WorkerBackend = ThreadBackend(StubWorker, workers)
    else:
        from workers.ray_environment import prepare_environment

        prepare_environment(None)
        from workers.ray_backend import ActorMethods, RayBackend

        class StubActor(ActorMethods, StubWorker):
            mean_seconds = sleep

        backend = RayBackend(workers=workers, cpus_per_worker=(os.cpu_count() or 1) / workers, worker_class=StubActor)
    try:
        yield backend
    finally:
        backend.close()


@contextlib.contextmanager
def database_of(on_postgresql: bool) -> Iterator[Database]:
    with scratch_database("postgresql" if on_postgresql else "sqlite") as url, Database(url) as database:
        yield database


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--ray", action="store_true", help="actors instead of threads; give fewer --workers")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--sleep", type=float, default=0.115, help="mean seconds of an evaluation")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)
    engine = "ray" if arguments.ray else "threads"
    with (
        database_of(arguments.postgresql) as database,
        backend_of(engine, arguments.workers, arguments.sleep) as backend,
    ):
        load = run(database, backend, jobs=arguments.jobs, generations=arguments.generations)
    name = "PostgreSQL" if arguments.postgresql else "SQLite"
    print(f"{name}, {arguments.workers} workers ({engine}), {arguments.jobs} jobs, generations of {GENERATION}:")
    print(f"  {load.recorded} evaluations in {load.seconds:.2f} s: {load.rate:.0f} recorded/s (required: {RATE:.0f})")
    print(f"  workers busy {100 * load.busy:.1f} % of the time (required: {100 * BUSY:.0f} %)")
    return int(load.rate < RATE or load.busy < BUSY)


if __name__ == "__main__":
    sys.exit(main())
