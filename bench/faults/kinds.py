"""The kinds of faults: what is done to a running service, and what is expected of it.

After most kinds nothing may be noticed but time: the jobs end as if undisturbed. The others say here how they end.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from bench.faults import worker
from bench.faults.databases import Postgresql, SqliteFile
from bench.faults.files import change_files, disturb_plan
from bench.faults.service import Service, StuckError
from workers.supervisor import kill_session

Inject: TypeAlias = Callable[[Service, random.Random], str]
"""Does it, and returns what it did; raises StuckError if the service does not do what is expected of it."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault."""

    name: str
    inject: Inject
    expects: str
    """Beside that all jobs end as if undisturbed."""
    weight: int = 1
    """How often it occurs in a cycle; those that cost no restart occur more often."""
    databases: tuple[str, ...] = ("sqlite", "postgresql")
    needs_disks: bool = False
    in_batches: bool = True
    """Whether another fault may come before or after it without the service having settled between them."""


def kill(process: str) -> Inject:
    return lambda service, rng: service.kill(process)


def hang_worker(service: Service, rng: random.Random) -> str:
    return service.kill("worker", signal.SIGSTOP)  # its evaluation times out, and it is replaced


def hang_coordinator(service: Service, rng: random.Random) -> str:
    service.kill("coordinator", signal.SIGSTOP)
    seconds = rng.uniform(1, 8)
    time.sleep(seconds)
    for process in service.find("coordinator"):
        process.send_signal(signal.SIGCONT)
    return f"the coordinator stood still for {seconds:.1f} s"


def lock_database(service: Service, rng: random.Random) -> str:
    seconds = rng.uniform(0.5, 5)
    service.server.lock(seconds)
    return f"the database was locked for {seconds:.1f} s"


def step_clock(service: Service, rng: random.Random) -> str:
    seconds = rng.choice((-1, 1)) * rng.choice((5, 60, 3600)) * rng.uniform(0.5, 1.5)
    service.server.step_clock(seconds)
    killed = rng.random() < 0.25 and service.kill("coordinator")
    time.sleep(rng.uniform(0.5, 3))
    return f"the clock was set to {seconds:+.0f} s" + (", and " + killed if killed else "")


def kill_postgresql(service: Service, rng: random.Random) -> str:
    assert isinstance(service.server, Postgresql)
    seconds = rng.uniform(0, 4)
    service.server.kill(seconds)
    return f"PostgreSQL was killed and was away for {seconds:.1f} s"


def deliver_twice(service: Service, rng: random.Random) -> str:
    began, seconds = time.monotonic(), rng.uniform(1, 3)
    service.twice.touch()
    time.sleep(seconds)
    service.twice.unlink()
    service.twice_between.append((began, time.monotonic() + 10.0))  # what is queued at a worker is done later
    return f"tasks and records were delivered twice for {seconds:.1f} s"


def submit_hostile(service: Service, rng: random.Random) -> str:
    service.submit_stub(worker.HOSTILE)
    return "a job in which candidates give NaN, inf and 1e300"


def second_coordinator(service: Service, rng: random.Random) -> str:
    command = [sys.executable, "-m", "bench.faults.processes", "coordinate", "--root", str(service.root)]
    command += ["--workers", "1", "--cpus-per-worker", "0.5", "--lease-seconds", "3", "--log-level", "warning"]
    command += ["--work", str(service.disks["work"].folder)]
    with service.log.open("ab") as log:
        other = subprocess.Popen(
            command,
            env=service.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert other.stdout is not None
    assert other.stdin is not None
    number = signal.SIGKILL
    try:
        ready = other.stdout.readline()
        if not ready.startswith(b"coordinator ready"):
            raise StuckError(f"a second coordinator did not start: {ready.decode()}")
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        time.sleep(rng.uniform(0, 4))
    finally:
        other.send_signal(number)
        other.stdin.close()
        other.wait(60)
        kill_session(other.pid)  # as what supervises a coordinator does: a server, or systemd
        other.stdout.close()
    return f"a second coordinator came, and ended by {signal.Signals(number).name}"


def unreadable_database(service: Service, expected: str, restore: Callable[[], None]) -> None:
    """Expect that the server is not ready, and that it continues as before once the files are restored."""
    try:
        service.wait(lambda: not service.is_ready(), f"/readyz says ready although {expected}", seconds=15)
    finally:
        service.stop()
        restore()
    service.start()


def delete_database(service: Service, rng: random.Random) -> str:
    assert isinstance(service.server, SqliteFile)
    kept = service.folder / "kept"
    service.server.take_away(kept)
    unreadable_database(service, "the database is deleted", lambda: put_back(service, kept))
    return "the database was deleted, and restored while the service was stopped"


def corrupt_database(service: Service, rng: random.Random) -> str:
    assert isinstance(service.server, SqliteFile)
    backup = service.folder / "kept"
    service.server.corrupt(backup)
    unreadable_database(service, "the database is overwritten", lambda: put_back(service, backup))
    return "the database was overwritten with zeros, and restored while the service was stopped"


def put_back(service: Service, where: Any) -> None:
    assert isinstance(service.server, SqliteFile)
    service.server.put_back(where)


def fill_database_disk(service: Service, rng: random.Random) -> str:
    disk, seconds = service.disks["database"], rng.uniform(1, 4)
    disk.fill()
    time.sleep(seconds)
    disk.empty()
    return f"the disk of the database was full for {seconds:.1f} s"


def read_only_database(service: Service, rng: random.Random) -> str:
    """Only while nobody has the files open can a disk be made read-only."""
    disk, size = service.disks["database"], service.log.stat().st_size
    service.stop()
    if not disk.set_read_only(True):
        raise StuckError("a process still has the database open after the service has stopped")
    try:
        service.start()
        service.wait(lambda: not service.is_ready(), "/readyz says ready on a read-only disk", seconds=10)
        said = service.said_since(size)
        if "readonly" not in said and "read-only" not in said and "unable to open" not in said:
            raise StuckError(f"the reason is not said: {said[-500:]}")
    finally:
        if service.process is not None and not service.process_ended():
            os.killpg(service.process.pid, signal.SIGTERM)
            service.process.wait(40)
        disk.set_read_only(False)
    return "the service was started on a read-only disk"


def on_disk(name: str, how: str) -> Inject:
    return lambda service, rng: disturb_plan(service, rng, name, how)


KINDS = [
    Kind(name="worker: kill -9", inject=kill("worker"), expects="it is replaced", weight=4),
    Kind(name="worker: hangs", inject=hang_worker, expects="it is replaced after the time limit", weight=2),
    Kind(name="projector: kill -9", inject=kill("projector"), expects="it is replaced", weight=3),
    Kind(name="coordinator: kill -9", inject=kill("coordinator"), expects="it is replaced", weight=2),
    Kind(name="coordinator: hangs", inject=hang_coordinator, expects="it notices what it has lost", weight=1),
    Kind(name="raylet: kill -9", inject=kill("raylet"), expects="the coordinator is replaced"),
    Kind(name="gcs: kill -9", inject=kill("gcs"), expects="the coordinator is replaced"),
    Kind(name="serve: kill -9", inject=kill("serve"), expects="all of its processes end"),
    Kind(name="two coordinators", inject=second_coordinator, expects="each job has one owner"),
    Kind(name="tasks and records twice", inject=deliver_twice, expects="they count once", weight=4),
    Kind(name="NaN, inf, exploding", inject=submit_hostile, expects="named outcomes", weight=2),
    Kind(name="clock steps", inject=step_clock, expects="leases hold and expire", weight=4),
    Kind(name="database: locked", inject=lock_database, expects="it waits", weight=4),
    Kind(
        name="PostgreSQL: kill -9",
        inject=kill_postgresql,
        expects="it waits",
        weight=3,
        databases=("postgresql",),
    ),
    Kind(
        name="database: deleted",
        inject=delete_database,
        expects="not ready until it is restored",
        databases=("sqlite",),
        in_batches=False,
    ),
    Kind(
        name="database: corrupted",
        inject=corrupt_database,
        expects="not ready until it is restored",
        databases=("sqlite",),
        in_batches=False,
    ),
    Kind(
        name="database: disk full",
        inject=fill_database_disk,
        expects="it waits",
        weight=3,
        databases=("sqlite",),
        needs_disks=True,
    ),
    Kind(
        name="database: disk read-only",
        inject=read_only_database,
        expects="the reason is said",
        databases=("sqlite",),
        needs_disks=True,
        in_batches=False,
    ),
    *(
        Kind(
            name=f"{folder}: disk {how}",
            inject=on_disk(folder, how),
            expects="the plan fails with the reason or ends as undisturbed; retried, it ends as undisturbed",
            needs_disks=True,
            in_batches=False,
        )
        for folder in ("work", "cache")
        for how in ("full", "read-only")
    ),
    *(
        Kind(
            name=f"{what} changed under a job",
            inject=change_files(what),
            expects="the job fails with the reason or ends as undisturbed",
            in_batches=False,
        )
        for what in ("model", "document")
    ),
]
