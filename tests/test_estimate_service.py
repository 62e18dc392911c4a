"""The service's side of estimates and costs: REST, refusals, what workers record, accounting, logs."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.estimate_schemas import Estimate
from api.shown import shown_plan
from factor_search.measure.evaluation import PRUNED
from factor_search.search.estimate_text import summary
from factor_search.spec import parse_spec
from factor_search.visible import JsonFormatter
from storage.coordinators import CoordinatorStore
from storage.evaluations import Batch
from storage.job_rows import Spent
from tests.records import candidate, computed
from tests.rest_service import PLAN, SPEC, FakeCoordinator, app_on, calling, settings
from tests.service import Service
from workers.backend import Capacity
from workers.job_evaluator import _spent
from workers.model_worker import ModelWorker
from workers.policy import Policy


@pytest.fixture
def client(tmp_path: Path, checkpoint: Path, texts: Path) -> Iterator[TestClient]:
    policy = Policy(
        (checkpoint, texts, tmp_path), allow_hub=True, allow_remote_code=False, work_folder=tmp_path / "made"
    )
    with calling(app_on(tmp_path, policy=policy)) as client:
        yield client


def job(checkpoint: Path, texts: Path, **changes: Any) -> dict[str, Any]:
    data = {"files": [str(texts / "*.txt")], "search_documents": 2, "validation_documents": 2, "held_out_documents": 2}
    document = {"model": str(checkpoint), "data": data, "target_length": 128, "space": {"initial_tokens": [0]}}
    return document | {"budget": 10, "strategy": "cma"} | changes


def report_memory(folder: Path, memory: int, *, name: str = "fake", **more: Any) -> None:
    with FakeCoordinator(settings(folder).database_url) as coordinator:
        capacity = {"workers": 4, "alive": 2, "busy": 1, "memory": memory} | more
        CoordinatorStore(coordinator.database).report(name, "host", 1, capacity)


class TestRoute:
    def test_of_a_job_it_answers_with_what_it_will_cost(
        self, client: TestClient, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        report_memory(tmp_path, 2**40)
        response = client.post("/v1/estimate", json=job(checkpoint, texts))
        assert response.status_code == 200, response.text
        found = Estimate.model_validate(response.json())
        assert found.search is not None
        assert found.search.tokens == 10 * 2 * 127
        assert found.workers == 4
        assert found.fits is True
        assert found.memory is not None
        assert found.memory.available == 2**40
        assert found.speed is not None
        assert (found.speed.calibrated, found.speed.source) == (False, "assumed")
        assert found.documents is not None
        assert [one.tokens for one in found.documents.held_out] == [128, 128]
        assert found.total.seconds

    def test_a_job_has_the_workers_of_one_coordinator(
        self, client: TestClient, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        report_memory(tmp_path, 2**40)
        report_memory(tmp_path, 2**40, name="other", workers=6)
        assert client.post("/v1/estimate", json=job(checkpoint, texts)).json()["workers"] == 6

    def test_workers_share_the_memory_of_their_machine(
        self, client: TestClient, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        large = job(checkpoint, texts, target_length=2**18)
        needed = client.post("/v1/estimate", json=large).json()["memory"]["peak"]
        report_memory(tmp_path, needed, memory_each=needed // 4)
        found = client.post("/v1/estimate", json=large).json()
        assert (found["fits"], found["memory"]["available"]) == (False, needed // 4)
        assert any("share the memory" in note for note in found["notes"])
        assert client.post("/v1/jobs", json=large).status_code == 201, "a worker may be alone"
        report_memory(tmp_path, needed, memory_each=needed)
        found = client.post("/v1/estimate", json=large).json()
        assert found["fits"]
        assert not any("share the memory" in note for note in found["notes"])

    def test_of_a_plan_it_answers_with_every_stage(self, client: TestClient, checkpoint: Path, texts: Path) -> None:
        document = job(checkpoint, texts)
        plan = {"model": document["model"], "data": document["data"], "target_length": 256, "recipe": "longrope2"}
        found = client.post("/v1/estimate", json=plan).json()
        assert [stage["kind"] for stage in found["stages"]] == ["search", "finetune", "evaluate", "export"]
        assert found["total"]["seconds"] == pytest.approx(sum(one["total"]["seconds"] for one in found["stages"]))
        assert any("no coordinator" in note for note in found["notes"])

    @pytest.mark.parametrize("document", [SPEC, PLAN])
    def test_the_hub_is_not_asked(self, client: TestClient, document: dict[str, Any]) -> None:
        response = client.post("/v1/estimate", json=document)
        assert response.status_code == 200, response.text
        assert response.json()["total"] == {"tokens": None, "seconds": None}
        assert "on the hub" in response.json()["notes"][0]
        assert summary(response.json()).startswith("estimate: none; the model is on the hub")

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({"target_length": "long"}, 422),
            ({"model": "/nowhere/model"}, 400),
            ({"target_length": 16}, 400),
            ({"data": "/etc/*"}, 400),
            ({"unknown": 1}, 422),
        ],
    )
    def test_bad_input_is_a_problem(
        self, client: TestClient, checkpoint: Path, texts: Path, changes: dict[str, Any], status: int
    ) -> None:
        response = client.post("/v1/estimate", json=job(checkpoint, texts, **changes))
        assert response.status_code in (status, 422), response.text
        assert response.headers["content-type"] == "application/problem+json"

    def test_a_data_set_on_the_hub_is_not_read(self, client: TestClient, checkpoint: Path, texts: Path) -> None:
        document = job(checkpoint, texts) | {"data": {"dataset": "some/data", "search_documents": 3}}
        found = client.post("/v1/estimate", json=document).json()
        assert found["documents"] is None
        assert found["search"]["tokens"] == 10 * 3 * 127
        assert any("the documents were not read" in note for note in found["notes"])

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff"])
    def test_a_body_without_a_specification_is_a_problem(self, client: TestClient, body: bytes) -> None:
        response = client.post("/v1/estimate", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), response.text

    def test_too_few_documents_are_said_and_nothing_else_is_lost(
        self, client: TestClient, checkpoint: Path, texts: Path
    ) -> None:
        found = client.post("/v1/estimate", json=job(checkpoint, texts, target_length=100_000)).json()
        assert found["documents"] is None
        assert found["search"]["tokens"] == 10 * 2 * 99_999
        assert any("documents cannot be used" in note for note in found["notes"])


class TestRefusal:
    def test_a_job_beyond_the_largest_worker_is_refused_unless_asked_for(
        self, client: TestClient, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        large = job(checkpoint, texts, target_length=2**22)
        assert client.post("/v1/jobs", json=large).status_code == 201, "no memory is known yet"
        report_memory(tmp_path, 600 * 2**20)
        refused = client.post("/v1/jobs", json=large)
        assert refused.status_code == 422
        assert "the largest target_length that would fit is" in refused.json()["detail"]
        assert client.post("/v1/estimate", json=large).json()["fits"] is False
        assert client.post("/v1/jobs?ignore_memory=true", json=large).status_code == 201
        assert client.post("/v1/jobs", json=job(checkpoint, texts)).status_code == 201

    def test_a_plan_is_refused_too(self, client: TestClient, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
        report_memory(tmp_path, 2**20)
        document = job(checkpoint, texts)
        plan = {"model": document["model"], "data": document["data"], "target_length": 256, "recipe": "longrope2"}
        refused = client.post("/v1/plans", json=plan)
        assert refused.status_code == 422
        assert "weights, gradients and moments of AdamW alone" in refused.json()["detail"]

    def test_the_memory_of_a_cluster_is_that_of_its_largest_node_with_cores(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from workers import ray_backend

        def node(**resources: float) -> dict[str, Any]:
            return {"Alive": True, "Resources": resources}

        nodes = [
            node(CPU=2, memory=7e9, object_store_memory=3e9),
            node(CPU=4, memory=2e9, object_store_memory=1e9),
            node(memory=1e12),
        ]
        monkeypatch.setattr(ray_backend, "_alive_nodes", lambda: nodes)
        backend = object.__new__(ray_backend.RayBackend)
        backend._cpus, backend._gpus, backend._limit = 1.0, None, None
        assert backend.capacity().memory == 10**10
        assert backend.capacity().memory_each == 10**10 // 2, "two workers fit on that node"
        backend._limit = 1
        assert backend.capacity().memory_each == 10**10
        monkeypatch.setattr(ray_backend, "_alive_nodes", lambda: [node(CPU=1)])
        assert backend.capacity().memory is None

    def test_workers_share_a_gpu_and_a_machine(self) -> None:
        capacity = Capacity(workers=8, cpus=8, gpus=2, gpus_each=0.25, nodes=1, memory=32, memory_each=4)
        assert capacity.memory_beside_others("cuda", 80) == 20
        assert capacity.memory_beside_others("cuda", None) is None
        assert capacity.memory_beside_others("cpu", 30) == 4
        assert replace(capacity, memory_each=None).memory_beside_others("cpu", 30) == 30
        assert replace(capacity, gpus_each=0.0).memory_beside_others("cuda", 80) == 80


class TestAccounting:
    def test_each_evaluation_costs_what_it_adds(self) -> None:
        first, whole = (computed(candidate(0), PRUNED, losses).evaluation for losses in ((1.0,), (1.0, 2.0)))
        assert _spent(whole, None) == Spent(511 + 510, 0.25)
        assert _spent(whole, first) == Spent(510, 0.0)

    def test_costs_add_up_in_jobs_and_metrics(self, tmp_path: Path) -> None:
        with calling(app_on(tmp_path)) as client, FakeCoordinator(settings(tmp_path).database_url) as coordinator:
            id = client.post("/v1/jobs", json=SPEC).json()["id"]
            lease = coordinator.claim()
            for _ in range(2):
                coordinator.evaluations.record({lease: Batch(spent=Spent(2**31, 1.5))})
            coordinator.jobs.end(lease, "finished", factors={}, report={}, spent=Spent(1, 0.25))
            found = client.get(f"/v1/jobs/{id}").json()
            assert found["cost"] == {"tokens": 2**32 + 1, "device_seconds": 3.25}
            assert client.get("/v1/jobs").json()["jobs"][0]["cost"] == found["cost"]
            families = {one.name: one for one in text_string_to_metric_families(client.get("/metrics").text)}
            (tokens,) = families["factor_search_tokens"].samples
            (seconds,) = families["factor_search_device_seconds"].samples
            assert (tokens.labels, tokens.value) == ({"kind": "search"}, 2**32 + 1)
            assert (seconds.labels, seconds.value) == ({"kind": "search"}, 3.25)

    def test_a_search_by_real_workers_records_speed_estimate_and_cost(
        self, service: Service, checkpoint: Path, texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "workers")
        service.start(workers=1, make=lambda: ModelWorker(threads=1))  # type: ignore[arg-type, return-value]
        spec = parse_spec(job(checkpoint, texts))
        first, _ = service.jobs.submit(spec)
        assert service.wait(first.id) == "finished"
        report = service.jobs.document(first.id, "report")
        assert report is not None
        assert report["estimate"]["search"]["tokens"] == report["search"]["tokens"]
        assert report["taken"]["peak_memory"] > 2**20
        assert not report["taken"]["continued"]
        stored = service.jobs.get(first.id)
        assert stored.tokens == report["taken"]["tokens"]
        assert stored.device_seconds == pytest.approx(report["taken"]["device_seconds"])
        again, _ = service.jobs.submit(spec)
        service.wait(again.id)
        assert service.jobs.get(again.id).tokens == 0, "all evaluations were known"
        events = [vars(record) for record in caplog.records if getattr(record, "job", None) == first.id]
        assert [event["event"] for event in events] == ["claimed", "finished"]
        assert events[1]["tokens"] == stored.tokens
        assert "estimate" in service.kinds(first.id)
        policy = Policy((checkpoint, texts), allow_hub=False, allow_remote_code=False)
        with calling(app_on(tmp_path, policy=policy)) as client:
            found = client.post("/v1/estimate", json=job(checkpoint, texts)).json()
        assert (found["speed"]["source"], found["speed"]["calibrated"]) == ("recorded", True)
        assert found["total"]["seconds"] > 0


class TestRecorded:
    """What estimates look up in the database, on both kinds of it."""

    @pytest.fixture(params=["sqlite", "postgresql"])
    def url(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path / 'jobs.db'}"
        address: str = request.getfixturevalue("postgresql_database")
        return address

    def test_the_last_measurement_and_the_largest_device_are_found(self, url: str) -> None:
        with FakeCoordinator(url) as coordinator:
            jobs, evaluations = coordinator.jobs, coordinator.evaluations
            for number, memory in enumerate((8e10, 4e10)):
                jobs.submit(parse_spec(SPEC))
                claim = jobs.claim("fake", 60)
                assert claim is not None
                speed = {"key": "k", "available": memory, "device": "cuda, X", "linear": 1.0 + number}
                evaluations.start_search(claim[1], 512, "study", {"speed": speed})
            found = evaluations.speed_of("k")
            assert found is not None
            assert found["linear"] == 2.0
            assert evaluations.speed_of("other") is None
            assert evaluations.memory_of_devices("cuda") == 8 * 10**10
            assert evaluations.memory_of_devices("rocm") is None

    def test_the_pace_of_the_last_finished_search_of_a_model_is_found(self, url: str) -> None:
        with FakeCoordinator(url) as coordinator:
            jobs = coordinator.jobs
            assert jobs.pace_of("some/model") is None
            for seconds in (10.0, 20.0):
                jobs.submit(parse_spec(SPEC))
                coordinator.finish(coordinator.claim(), report={"search": {"tokens": 1000, "seconds": seconds}})
            length, pace = jobs.pace_of("some/model") or (0, 0.0)
            assert (length, pace) == (512, 0.02)
            assert jobs.spent_by_kind() == {"search": Spent()}

    def test_an_earlier_job_gives_a_rough_speed(
        self, client: TestClient, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        document = job(checkpoint, texts)
        assert client.post("/v1/jobs", json=document).status_code == 201
        with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
            coordinator.finish(coordinator.claim(), report={"search": {"tokens": 1000, "seconds": 10.0}})
        speed = client.post("/v1/estimate", json=document).json()["speed"]
        assert (speed["source"], speed["calibrated"]) == ("earlier", False)
        assert speed["tokens_per_second"] == pytest.approx(100, rel=0.02)


def test_a_line_of_json_for_each_event_with_its_fields() -> None:
    record = logging.LogRecord("workers.driver", logging.INFO, "x.py", 1, "job %s ended\n\x1b[2J", ("j1",), None)
    record.event, record.job, record.tokens = "finished", "j1", 12
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "\x1b" not in text
    line = json.loads(text)
    assert {key: line[key] for key in ("level", "logger", "event", "job", "tokens")} == {
        "level": "info",
        "logger": "workers.driver",
        "event": "finished",
        "job": "j1",
        "tokens": 12,
    }
    assert line["at"].endswith("+00:00")


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        import sys

        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "failed", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError: first" in json.loads(text)["traceback"]


def test_a_plan_shows_what_each_stage_has_cost(tmp_path: Path) -> None:
    with calling(app_on(tmp_path)) as client, FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        id = client.post("/v1/plans", json=PLAN).json()["id"]
        plan = client.app.state.records.plans.get(id)  # type: ignore[attr-defined]
        shown = shown_plan(plan, driven=True, owners={})
        assert shown.cost.tokens == 0
        with coordinator.database.writing() as connection:
            from storage.plan_rows import make_job

            make_job(connection, plan, name="n", kind="search", spec={}, spec_sha256="s")
        lease = coordinator.claim()
        coordinator.evaluations.record({lease: Batch(spent=Spent(70, 2.0))})
        found = client.get(f"/v1/plans/{id}").json()
        assert found["cost"] == found["stages"][0]["cost"] == {"tokens": 70, "device_seconds": 2.0}
        assert found["stages"][1]["cost"] == {"tokens": 0, "device_seconds": 0.0}
