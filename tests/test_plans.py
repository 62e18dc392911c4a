"""Plans through the service: each stage runs as a job, whatever dies or is requested meanwhile."""

import importlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from factor_search.errors import OutputError
from factor_search.plan.kinds.contract import Outcome
from factor_search.plan.run import run_plan
from factor_search.plan.spec import PlanSpec, parse_plan
from factor_search.plan.work import parse_outcome
from storage.events import PLAN, read_events
from storage.plan_steps import PlanSteps
from storage.plans import Plan, PlanStore
from tests.plans import plan_document, stages
from tests.processes import one_thread, wait_for
from tests.service import Service
from workers.model_worker import ModelWorker


def worker() -> ModelWorker:
    return ModelWorker(threads=1)


def submit(plans: PlanStore, document: dict[str, Any]) -> str:
    spec: PlanSpec = parse_plan(document).expanded()
    named = [(str(stage.name), stage.kind) for stage in spec.stages or ()]
    return plans.submit(name=spec.name, spec=spec.model_dump(mode="json"), stages=named)[0].id


class PlanService(Service):
    """Coordinators whose workers are threads with real models."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"sqlite:///{folder / 'jobs.db'}", work_folder=folder / "made")
        self.plans = PlanStore(self.database)

    def begin(self, workers: int = 1, **options: float) -> None:
        self.start(workers=workers, make=worker, **options)  # type: ignore[arg-type]

    def submit(self, document: dict[str, Any]) -> str:
        return submit(self.plans, document)

    def until(self, plan_id: str, *states: str, seconds: float = 60) -> Plan:
        wait_for(lambda: self.plans.get(plan_id).state in (states or ("finished", "failed", "cancelled")), seconds)
        return self.plans.get(plan_id)

    def until_stage(self, plan_id: str, name: str, state: str = "running") -> Plan:
        def there() -> bool:
            plan = self.plans.get(plan_id)
            return plan.present is not None and (plan.present.name, plan.state) == (name, state)

        wait_for(there, 60)
        return self.plans.get(plan_id)

    def workers_alive(self) -> list[threading.Thread]:
        """Of the only coordinator."""
        [(_, _, backend)] = self.running
        return [worker.thread for worker in backend.started if worker.thread.is_alive()]

    def history(self, plan_id: str) -> list[str]:
        return [event.kind for event in read_events(self.database, plan_id, of=PLAN)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PlanService]:
    service = PlanService(tmp_path)
    yield service
    service.stop()
    service.database.close()


@pytest.fixture(scope="module")
def reference(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What the same plan comes to in one process."""
    return in_one_process(plan_document(checkpoint, texts), tmp_path_factory.mktemp("reference") / "out")


def in_one_process(document: dict[str, Any], out: Path) -> list[Outcome]:
    """Outcomes of a plan in this process; its HTML pages, whose plots take longer than the stages, are left out."""
    pages = (mock.patch(f"factor_search.{name}.render", return_value="") for name in ("plan.run", "report.results"))
    with one_thread(), next(pages), next(pages):
        return run_plan(parse_plan(document), out).outcomes


def outcomes(plan: Plan) -> list[Outcome]:
    assert plan.state == "finished", plan.error
    return [parse_outcome(stage.outcome) for stage in plan.stages]


def weights(outcome: Outcome) -> bytes:
    assert outcome.model is not None
    return (Path(outcome.model.id) / "model.safetensors").read_bytes()


def factors(outcome: Outcome) -> dict[str, Any]:
    assert outcome.factors is not None
    return {name: outcome.factors[name] for name in ("rescale_factors", "initial_tokens", "attention_factor")}


def same(ours: list[Outcome], theirs: list[Outcome]) -> None:
    """Bit for bit, but for folders and seconds."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one.factors is None, one.model is None) == (other.factors is None, other.model is None)
        if one.factors is not None:
            assert factors(one) == factors(other)
        if one.model is not None:
            assert weights(one) == weights(other)
    for key in ("ladder", "passkey", "short_window"):
        assert ours[4].report[key] == theirs[4].report[key]


def test_a_plan_has_the_result_of_a_run_in_one_process(
    service: PlanService, checkpoint: Path, texts: Path, reference: list[Outcome]
) -> None:
    service.begin(workers=2)
    plan = service.until(service.submit(plan_document(checkpoint, texts)))
    same(outcomes(plan), reference)
    kinds = Counter(service.history(plan.id))
    assert (kinds["stage_queued"], kinds["stage_finished"], kinds["finished"]) == (6, 6, 1)
    expected = {stage.kind: parse_outcome(stage.outcome).report["estimate"] for stage in plan.stages}
    assert all({"total", "memory"} <= estimate.keys() for estimate in expected.values())
    assert expected["finetune"]["total"]["seconds"] > 0  # by the speed that was measured for the search before it
    assert expected["evaluate"]["total"]["tokens"] > 0


def test_a_service_reads_its_own_files_in_a_work_folder_outside_the_roots(
    service: PlanService, checkpoint: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a stage that is tried again: after a fine-tuning, and among the passkeys."""
    service.policy = replace(service.policy, roots=(checkpoint, texts))
    service.start(workers=1, make=lambda: ModelWorker(1, service.policy))  # type: ignore[arg-type,return-value]

    def failing(module: str, name: str, call: int) -> None:
        calls, function = itertools.count(1), getattr(importlib.import_module(module), name)

        def once(*arguments: Any, **options: Any) -> Any:
            done = function(*arguments, **options)
            if next(calls) == call:
                raise OutputError("the disk is full")
            return done

        monkeypatch.setattr(f"{module}.{name}", once)

    failing("factor_search.finetune.run", "write_record", 1)
    failing("factor_search.measure.passkey_grid", "passkey_accuracy", 2)
    every = stages(**{"search-1": {"target_length": 256}, "export-1": {"profile": "static"}})
    chosen = [stage for stage in every if stage["name"] not in ("search-2", "readjust-1")]
    plan_id = service.submit(plan_document(checkpoint, texts, stages=chosen))
    for stage in ("finetune-1", "evaluate-1"):
        assert service.until(plan_id).error == f"{stage}: the disk is full"
        service.plans.retry(plan_id)
    exported = outcomes(service.until(plan_id))[-1].model
    assert exported is not None
    assert (Path(exported.id) / "config.json").exists()


def short_plan(
    checkpoint: Path, texts: Path, *further: dict[str, Any], steps: int = 120, **changes: Any
) -> dict[str, Any]:
    """A search and a fine-tuning that takes a few seconds."""
    settings = {"steps": steps, "checkpoint_every": 10, "learning_rate": 1e-3, "warmup_steps": 2, "train_length": 64}
    tuning = {"kind": "finetune", "name": "finetune-1", "settings": settings}
    return plan_document(checkpoint, texts, stages=[stages()[0], tuning, *further], **changes)


@pytest.fixture(scope="module")
def short_reference(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    return in_one_process(short_plan(checkpoint, texts), tmp_path_factory.mktemp("reference") / "out")


def checkpoints(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.glob("made/finetune-*/checkpoints/step-*"))


def test_pause_and_resume_in_a_search_and_in_a_fine_tuning(
    service: PlanService, checkpoint: Path, texts: Path, tmp_path: Path, short_reference: list[Outcome]
) -> None:
    plan_id = service.submit(short_plan(checkpoint, texts))
    assert service.plans.pause(plan_id).state == "paused"
    service.begin()
    service.plans.resume(plan_id)
    service.until_stage(plan_id, "search-1")
    service.plans.pause(plan_id)
    service.until(plan_id, "paused")
    service.plans.resume(plan_id)
    wait_for(lambda: checkpoints(tmp_path), 60)
    [busy] = service.workers_alive()
    assert service.plans.pause(plan_id).request == "pause"
    service.until(plan_id, "paused", seconds=10)
    busy.join(10)  # at its next progress report; the step in progress may still end in a checkpoint
    assert not busy.is_alive()
    before = checkpoints(tmp_path)
    time.sleep(0.5)
    assert checkpoints(tmp_path) == before != []
    service.plans.resume(plan_id)
    plan = service.until(plan_id)
    ours = outcomes(plan)
    assert (factors(ours[0]), weights(ours[1])) == (factors(short_reference[0]), weights(short_reference[1]))
    assert ours[1].report["losses"] == short_reference[1].report["losses"]
    assert not checkpoints(tmp_path)


def test_cancelled_in_a_fine_tuning_it_can_be_tried_again_from_there(
    service: PlanService, checkpoint: Path, texts: Path, tmp_path: Path, short_reference: list[Outcome]
) -> None:
    service.begin()
    plan_id = service.submit(short_plan(checkpoint, texts))
    wait_for(lambda: checkpoints(tmp_path), 60)
    assert service.plans.cancel(plan_id).state == "cancelled"
    job = service.plans.get(plan_id).stages[1].job_id
    assert job is not None
    assert service.wait(job, "cancelled", seconds=10)
    before = checkpoints(tmp_path)
    assert before
    service.plans.retry(plan_id)
    plan = service.until(plan_id)
    assert plan.stages[1].job_id != job
    assert weights(outcomes(plan)[1]) == weights(short_reference[1])
    assert Counter(service.history(plan_id))["stage_queued"] == 3  # the search was not done again


def test_a_changed_later_stage_does_not_rerun_earlier_ones(service: PlanService, checkpoint: Path, texts: Path) -> None:
    document = plan_document(checkpoint, texts, stages=stages()[:2])
    service.begin()
    first = service.until(service.submit(document))
    assert first.state == "finished", first.error
    changed = stages(**{"finetune-1": {"settings": stages()[1]["settings"] | {"steps": 4}}})[:2]
    second = service.until(service.submit(document | {"stages": changed, "name": "again"}))
    assert [stage.reused for stage in second.stages] == [True, False]
    assert second.stages[0].job_id == first.stages[0].job_id
    assert outcomes(second)[1].model != outcomes(first)[1].model
    third = service.until(service.submit(document))
    assert [stage.reused for stage in third.stages] == [True, True]
    made = outcomes(third)[1].model
    assert made is not None
    shutil.rmtree(made.id)  # taken away since
    fourth = service.until(service.submit(document))
    assert [stage.reused for stage in fourth.stages] == [True, False]
    budget = stages(**{"search-1": {"budget": 16}})[:1]
    fifth = service.until(service.submit(document | {"stages": budget}))
    assert [stage.reused for stage in fifth.stages] == [False]  # more was asked for


def test_a_checkpoint_that_was_taken_away_is_made_again_from_its_stage(
    service: PlanService, checkpoint: Path, texts: Path
) -> None:
    document = plan_document(checkpoint, texts, stages=[*stages()[:2], {"kind": "export"}])
    service.begin()
    plan = service.until(service.submit(document))
    made = outcomes(plan)[1].model
    assert made is not None
    shutil.rmtree(service.policy.require_work_folder())
    service.plans.retry(plan.id, "export-1")
    plan = service.until(plan.id)
    assert (
        plan.error
        == f"export-1: the checkpoint {made.id} of finetune-1 is missing: restore it, or retry from finetune-1"
    )
    service.plans.retry(plan.id, "finetune-1")
    plan = service.until(plan.id)
    assert plan.state == "finished", plan.error
    assert [stage.reused for stage in plan.stages] == [False, False, False]
    exported = outcomes(plan)[2].model
    assert exported is not None
    assert (Path(exported.id) / "config.json").exists()


def test_a_stage_that_fails_says_why_and_is_tried_again(
    service: PlanService, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    document = plan_document(checkpoint, texts, stages=stages()[:2])
    missing = tmp_path / "papers" / "a.txt"
    plan_id = service.submit(document | {"training_files": [str(tmp_path / "papers" / "*.txt")]})
    service.begin()
    plan = service.until(plan_id)
    assert (plan.state, plan.error) == ("failed", f"finetune-1: no file matches {tmp_path / 'papers' / '*.txt'}")
    missing.parent.mkdir()
    missing.write_text("too short")
    service.plans.retry(plan_id)
    plan = service.until(plan_id)
    assert plan.state == "failed"
    assert plan.stages[1].job_id is not None
    assert service.jobs.get(plan.stages[1].job_id).state == "failed"
    assert str(plan.error).startswith("finetune-1: ")
    missing.write_text("Another text, long enough to be read. " * 20)
    service.plans.retry(plan_id, "search-1")
    plan = service.until(plan_id)
    assert plan.state == "finished", plan.error
    assert [stage.reused for stage in plan.stages] == [True, False]


def test_a_checkpoint_is_refused_or_taken_by_a_worker(
    service: PlanService, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    later = [{"kind": "await_checkpoint", "name": "tuned"}, {"kind": "search", "target_length": 256, "budget": 14}]
    plan_id = service.submit(plan_document(checkpoint, texts, stages=[stages()[0], *later]))
    service.begin()
    plan = service.until(plan_id, "waiting")
    assert plan.present is not None
    work = plan.present.work
    assert work is not None
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for folder in (broken, whole):
        shutil.copytree(checkpoint, folder)
    (broken / "model.safetensors").write_bytes(b"nothing")
    assert service.plans.supply_checkpoint(plan_id, work | {"checkpoint": str(broken)}).state == "running"
    plan = service.until(plan_id, "waiting")
    assert "model.safetensors is not a safetensors file" in str(plan.error)
    assert "checkpoint_refused" in service.history(plan_id)
    assert service.plans.supply_checkpoint(plan_id, work | {"checkpoint": str(whole)}).error is None
    plan = service.until(plan_id)
    made = outcomes(plan)[1].model
    assert made is not None
    assert made.id == str(whole)
    assert plan.spec["stages"][2]["model"] == "tuned"


def test_two_coordinators_never_do_a_stage_twice(service: PlanService, checkpoint: Path, texts: Path) -> None:
    service.begin(lease_seconds=20.0)  # real models on a busy machine can delay a renewal by seconds
    service.begin(lease_seconds=20.0)
    document = plan_document(checkpoint, texts, stages=stages()[:2])
    ids = [service.submit(document | {"seed": seed}) for seed in range(3)]
    for plan_id in ids:
        plan = service.until(plan_id)
        assert plan.state == "finished", plan.error
        assert Counter(service.history(plan_id))["stage_queued"] == 2
        for stage in plan.stages:
            assert stage.job_id is not None
            assert Counter(service.kinds(stage.job_id))["claimed"] == 1
    assert len(service.jobs.list(limit=100)) == 6


def test_a_coordinator_that_is_killed_in_a_fine_tuning_changes_nothing(
    service: PlanService, checkpoint: Path, texts: Path, tmp_path: Path, short_reference: list[Outcome]
) -> None:
    plan_id = service.submit(short_plan(checkpoint, texts))
    program = (
        "import sys, time; from pathlib import Path; import tests.test_plans as t\n"
        "s = t.PlanService(Path(sys.argv[1])); s.begin(); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=os.environ.copy())
    try:
        wait_for(lambda: checkpoints(tmp_path), 90)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert service.plans.get(plan_id).present is not None
    service.begin()
    plan = service.until(plan_id)
    ours = outcomes(plan)
    assert weights(ours[1]) == weights(short_reference[1])
    assert ours[1].report["losses"] == short_reference[1].report["losses"]
    assert [Counter(service.kinds(str(stage.job_id)))["claimed"] for stage in plan.stages] == [1, 2]


def test_a_plan_left_between_any_two_steps_is_found_again(
    service: PlanService, checkpoint: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator goes after each step; whichever comes next takes each step once."""
    steps = PlanSteps(service.database)
    taken: list[str] = []

    def alone(name: str) -> Callable[..., bool]:
        step = getattr(PlanSteps, name)

        def once(*args: Any, **more: Any) -> bool:
            done: bool = step(*args, **more)
            if done:
                taken.append(name)
            for coordinator, _, _ in service.running:
                coordinator.shut_down()
            return done

        return once

    for name in ("queue", "conclude"):
        monkeypatch.setattr(PlanSteps, name, alone(name))
    plan_id = service.submit(plan_document(checkpoint, texts, stages=stages()[:2]))
    while service.plans.get(plan_id).state != "finished":
        service.begin()
        _, thread, _ = service.running[-1]
        thread.join(60)
        service.stop()
    assert taken == ["queue", "conclude"] * 2
    assert steps.due() == []
