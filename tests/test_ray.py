"""Jobs on a real Ray cluster: the small model in actors, nodes that join and die."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.ray_cluster import RayCluster
from factor_search.job import run_job
from factor_search.report.document import build_factors_file, build_report
from factor_search.spec import JobSpec, parse_spec
from storage.database import Database
from storage.evaluations import EvaluationStore
from storage.events import read_events
from storage.jobs import JobStore
from storage.plans import Plan, PlanStore
from tests.processes import survivors, wait_for
from tests.test_plans import checkpoints, in_one_process, outcomes, short_plan, submit, weights
from workers.coordinator import Coordinator
from workers.policy import Policy

pytestmark = pytest.mark.slow
ANYTHING = Policy((Path("/"),), allow_hub=False, allow_remote_code=False)


def specification(checkpoint: Path, texts: Path, **changes: Any) -> JobSpec:
    documents = {"search_documents": 2, "validation_documents": 2, "held_out_documents": 2}
    return parse_spec(
        {
            "model": {"id": str(checkpoint), "device": "cpu"},
            "data": {"files": [str(texts / "*.txt")], **documents},
            "target_length": 128,
            "budget": 40,
        }
        | changes
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(cpus=2) as cluster:
        yield cluster


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        yield database


@pytest.fixture
def coordinator(cluster: RayCluster, database: Database, tmp_path: Path) -> Iterator[Coordinator]:
    from workers.ray_backend import RayBackend

    backend = RayBackend(cluster.address)
    coordinator = Coordinator(database, backend, policy=replace(ANYTHING, work_folder=tmp_path / "made"))
    thread = threading.Thread(target=coordinator.run)
    thread.start()
    yield coordinator
    coordinator.shut_down()
    thread.join()
    backend.close()


def wait_for_end(database: Database, job_id: str, seconds: float = 120) -> str:
    store, until = JobStore(database), time.monotonic() + seconds
    while (job := store.get(job_id)).ended_at is None:
        assert time.monotonic() < until, job
        time.sleep(0.05)
    assert job.state == "finished", job.error
    return job.state


def wait_for_candidates(database: Database, job_id: str, at_least: int) -> None:
    store, until = EvaluationStore(database), time.monotonic() + 90
    while sum(row.state == "done" for row in store.of_job(job_id, limit=1000)) < at_least:
        assert time.monotonic() < until
        time.sleep(0.05)


def without_name(document: dict[str, Any] | None) -> dict[str, Any]:
    assert document is not None
    return {key: value for key, value in document.items() if key != "sha256"}


def test_a_job_on_ray_gives_bit_for_bit_what_a_single_process_gives(
    coordinator: Coordinator, database: Database, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    spec = specification(checkpoint, texts)
    store = JobStore(database)
    job, _ = store.submit(spec)
    wait_for_end(database, job.id)
    reference = run_job(spec, tmp_path / "reference")
    assert without_name(store.document(job.id, "factors")) == without_name(build_factors_file(reference).as_json())
    report, expected = store.document(job.id, "report"), build_report(reference)
    assert report is not None
    assert report["taken"]["tokens"] == expected["taken"]["tokens"]
    assert report["taken"]["peak_memory"] > 2**20
    assert report["estimate"]["search"]["tokens"] == expected["estimate"]["search"]["tokens"]
    for table in (report, expected):
        table["search"].pop("seconds")
        del table["estimate"], table["taken"]
    assert report == expected
    assert {"workers", "phase", "progress"} <= {event.kind for event in read_events(database, job.id)}


def actors() -> list[psutil.Process]:
    """Actor processes of this session's own cluster."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::RayModelWorker" in part for part in process.info["cmdline"] or ()):
            token = ""
            try:
                token = process.environ().get("RAY_AUTH_TOKEN", "")
            except psutil.Error:
                continue
            if token == os.environ["RAY_AUTH_TOKEN"]:
                found.append(process)
    return found


def test_an_actor_that_is_killed_is_replaced(
    coordinator: Coordinator, database: Database, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    spec = specification(checkpoint, texts, budget=120, seed=1)
    store = JobStore(database)
    job, _ = store.submit(spec)
    wait_for_candidates(database, job.id, 5)
    victims = actors()
    assert victims
    victims[0].send_signal(signal.SIGKILL)
    wait_for_end(database, job.id)
    lost = [event.data for event in read_events(database, job.id) if event.kind == "worker_lost"]
    assert [event["reason"] for event in lost] == ["its process died"]
    reference = build_factors_file(run_job(spec, tmp_path / "reference")).as_json()
    assert without_name(store.document(job.id, "factors")) == without_name(reference)


def test_a_worker_that_is_killed_in_a_fine_tuning_changes_nothing(
    coordinator: Coordinator, database: Database, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    document, plans = short_plan(checkpoint, texts, steps=600), PlanStore(database)
    plan_id = submit(plans, document)
    wait_for(lambda: checkpoints(tmp_path) and steps_told(database, plans.get(plan_id)), 90)
    victim = max(actors(), key=lambda actor: actor.cpu_percent(0.2))
    victim.send_signal(signal.SIGKILL)
    wait_for(lambda: plans.get(plan_id).ended_at is not None, 90)
    ours, theirs = outcomes(plans.get(plan_id)), in_one_process(document, tmp_path / "reference")
    assert weights(ours[1]) == weights(theirs[1])
    assert ours[1].report["losses"] == theirs[1].report["losses"]
    events = read_events(database, str(plans.get(plan_id).stages[1].job_id))
    kinds = Counter(event.kind for event in events)
    assert (kinds["worker_lost"], kinds["retried"], kinds["claimed"]) == (1, 1, 1)


def steps_told(database: Database, plan: Plan) -> list[int]:
    """Of the fine-tuning, the steps that were told as done."""
    events = read_events(database, str(plan.stages[1].job_id)) if plan.stages[1].job_id else []
    return [event.data["step"] for event in events if event.kind == "progress" and event.data.get("step")]


def test_documents_are_read_on_a_node_with_cores() -> None:
    from workers.ray_backend import ActorMethods, RayBackend

    class Reader(ActorMethods):
        """Says on which node it reads."""

        @staticmethod
        def read(spec: JobSpec) -> str:
            import ray

            return ray.get_runtime_context().get_node_id()

    with RayCluster(cpus=0) as cluster:  # the driver joins it there
        backend = RayBackend(cluster.address, worker_class=Reader)
        try:
            spec = parse_spec({"model": "m", "data": "a.txt", "target_length": 128})

            def where() -> Any:
                reading = backend.read(spec)
                assert reading is not None
                return reading.result.result(60)

            head = where()
            cluster.add_node(cpus=1)
            wait_for(lambda: backend.capacity().nodes == 2, 30)
            assert where() != head
        finally:
            backend.close()


def test_a_coordinator_process_starts_a_ray_of_its_own_and_goes_with_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers", "--database", f"sqlite:///{tmp_path / 'jobs.db'}", "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "coordinator ready" in process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in children)
        process.stdin.close()
        assert process.wait(30) == 0
        assert [child.name() for child in survivors(children)] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--database", "nonsense"], "database URL (sqlite://"),
        (["--ray-address", "127.0.0.1:1"], "cannot join the Ray cluster at 127.0.0.1:1"),
        (["--root", "/no/such/folder"], "is not a folder"),
    ],
)
def test_a_coordinator_that_cannot_start_says_why_in_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "workers"]
    if "--database" not in arguments:
        command += ["--database", f"sqlite:///{tmp_path / 'jobs.db'}"]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("coordinator: error: ")
    assert message in last
