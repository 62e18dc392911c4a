"""Plans through the service: every stage a job, each result handed on, whatever dies or is asked for meanwhile."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factor_search.plan.run import run_plan
from factor_search.plan.spec import PlanSpec, parse_plan
from factor_search.plan.work import Outcome, parse_outcome
from storage.events import PLAN, read_events
from storage.plans import Plan, PlanStore
from tests.plans import plan_document
from tests.processes import wait_for
from tests.service import Service
from workers.model_worker import ModelWorker


def worker() -> ModelWorker:
    return ModelWorker(threads=1)


class PlanService(Service):
    """Coordinators whose workers are threads with real models."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"sqlite:///{folder / 'jobs.db'}", made=folder / "made")
        self.plans = PlanStore(self.database)

    def begin(self, workers: int = 1) -> None:
        self.start(workers=workers, make=worker)  # type: ignore[arg-type]

    def submit(self, document: dict[str, Any]) -> str:
        spec: PlanSpec = parse_plan(document).expanded()
        named = [(str(stage.name), stage.kind) for stage in spec.stages or ()]
        return self.plans.submit(name=spec.name, spec=spec.model_dump(mode="json"), stages=named)[0].id

    def until(self, plan_id: str, *states: str, seconds: float = 60) -> Plan:
        wait_for(lambda: self.plans.get(plan_id).state in (states or ("finished", "failed", "cancelled")), seconds)
        return self.plans.get(plan_id)

    def until_stage(self, plan_id: str, name: str, state: str = "running") -> Plan:
        def there() -> bool:
            plan = self.plans.get(plan_id)
            return plan.present is not None and (plan.present.name, plan.state) == (name, state)

        wait_for(there, 60)
        return self.plans.get(plan_id)

    def history(self, plan_id: str) -> list[str]:
        return [event.kind for event in read_events(self.database, plan_id, of=PLAN)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PlanService]:
    service = PlanService(tmp_path)
    yield service
    service.stop()
    service.database.close()


@pytest.fixture(scope="module")
def twin(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What the same plan comes to in one process."""
    out = tmp_path_factory.mktemp("twin") / "out"
    return run_plan(parse_plan(plan_document(checkpoint, texts)), out).outcomes


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


def test_a_plan_gives_what_its_twin_in_one_process_gives(
    service: PlanService, checkpoint: Path, texts: Path, twin: list[Outcome]
) -> None:
    service.begin(workers=2)
    plan = service.until(service.submit(plan_document(checkpoint, texts)))
    same(outcomes(plan), twin)
    kinds = Counter(service.history(plan.id))
    assert (kinds["stage_queued"], kinds["stage_finished"], kinds["finished"]) == (6, 6, 1)
