"""A share of the campaign of faults (``make faults``), and that the campaign would notice what it looks for."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import delete

from bench.faults.__main__ import drawn, possible
from bench.faults.databases import SqliteFile
from bench.faults.disks import Disk
from bench.faults.kinds import KINDS
from bench.faults.service import MARK, Service, StuckError
from storage.database import Database
from storage.evaluations import Batch, EvaluationStore
from storage.jobs import JobStore
from storage.schema import evaluations
from tests.records import candidate, computed
from tests.test_storage import SPEC

ROOT = Path(__file__).parents[1]
QUICK = ("worker: kill", "projector", "coordinator: kill", "raylet", "twice", "NaN", "clock", "locked")
"""Each comes once with the seed below."""


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute, on a machine that does nothing else
def test_a_share_of_the_campaign(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "bench.faults", "--faults", str(len(QUICK)), "--minutes", "9"]
    command += ["--database", "postgresql", "--patience", "200", "--seed", "135", "--json", str(report)]
    command += [word for kind in QUICK for word in ("--kind", kind)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(report.read_text())["results"]
    assert [sum(kind in fault["kind"] for fault in result["faults"]) for kind in QUICK] == [1] * len(QUICK)
    assert (result["differing"], result["orphans"], result["lost"], result["repeated"]) == ([], [], 0, [])
    assert result["jobs"] >= 2
    assert result["evaluations"] > 300


@pytest.fixture
def service(tmp_path: Path) -> Service:
    places = {name: Disk(tmp_path / name, mounted=False) for name in ("database", "work", "cache")}
    for place in places.values():
        place.folder.mkdir()
    service = Service(tmp_path, SqliteFile(places["database"].folder, tmp_path / "clock"), places, random.Random(0))
    service.close()
    Database(service.server.url).close()
    return service


def test_what_is_lost_and_repeated_is_noticed(service: Service) -> None:
    with service.database() as database:
        jobs, store = JobStore(database), EvaluationStore(database)
        jobs.submit(SPEC)
        claim = jobs.claim("a", 60)
        assert claim is not None
        items = [candidate(number) for number in range(3)]
        store.record({claim[1]: Batch(computed=[computed(item) for item in items])})
        service.started.write_text("".join(f"{time.monotonic()} {item.key}\n" for item in items))
        assert service.look() == 3
        assert (service.lost, service.repeated()) == (set(), [])
        with service.started.open("a") as log:
            log.write(f"{time.monotonic()} {items[1].key}\n")
        with database.writing() as connection:
            connection.execute(delete(evaluations).where(evaluations.c.key == items[0].key))
        service.look()
        assert service.lost == {items[0].key}
        assert [said.split()[1] for said in service.repeated()] == [items[1].key]


def test_no_job_loses_two_coordinators_before_it_records(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "restart", lambda: None)
    service.patience = 0.3
    with service.database() as database:
        jobs, store = JobStore(database), EvaluationStore(database)
        service.jobs = {jobs.submit(SPEC)[0].id: {}}
        assert jobs.claim("killed", -1) is not None
        service.spare()
        claim = jobs.claim("its successor", 60)
        assert claim is not None
        with pytest.raises(StuckError, match="whose coordinator was lost records nothing"):
            service.spare()
        store.record({claim[1]: Batch(computed=[computed(candidate(0))])})
        service.spare()


def test_a_process_that_is_left_is_noticed(service: Service) -> None:
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ | {MARK: service.mark}
    )
    try:
        (found,) = service.orphans(seconds=0.5)
        assert "time.sleep(60)" in found
    finally:
        left.send_signal(signal.SIGKILL)
        left.wait()
    assert service.orphans() == []


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_same_seed_draws_the_same_faults_and_every_kind_occurs(database: str) -> None:
    kinds, _ = possible(KINDS, database, mounted=True)
    cycle = sum(kind.weight for kind in kinds)
    first, again, other = (list(islice(drawn(kinds, random.Random(seed)), cycle)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) == set(kinds)
    without, left_out = possible(KINDS, database, mounted=False)
    assert {kind.name for kind in kinds} == {kind.name for kind in without} | set(left_out)
