"""Numbers that no laboratory asks for are refused with their limit; what was stored with them is still read."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.problems import RefusedError
from api.submission import submitted_plan, submitted_spec
from bench.stub import PREPARED, stub_spec
from factor_search.errors import SpecError
from factor_search.plan.spec import parse_plan
from factor_search.search.problem import SearchProblem
from factor_search.search.strategies import build_strategy
from factor_search.spec import JobSpec, parse_spec
from factor_search.spec.strategies import CmaSpec, EvolutionSpec, Nsga2Spec, RandomSpec, TpeSpec
from storage.database import Database
from storage.jobs import JobStore
from storage.plan_steps import PlanSteps
from storage.plans import Plan, PlanStore
from tests.processes import wait_for
from tests.service import Service
from workers.plan_scheduler import PlanScheduler

JOB: dict[str, Any] = {"model": "m", "data": {"files": ["a.txt"]}, "target_length": 4096}
PLAN: dict[str, Any] = {"model": "m", "data": ["a.txt"], "stages": [{"kind": "search", "target_length": 4096}]}
NUMBERS = {
    "target_length": 2**27,
    "model.original_length": 2**27,
    "data.search_documents": 100_000,
    "data.validation_documents": 100_000,
    "data.held_out_documents": 100_000,
    "data.least_tokens": 2**27,
    "objective.stride": 2**27,
    "objective.tokens": 2**27,
    "space.scale": 10**6,
    "space.attention_factor": 1000,
    "space.critical_dimension": 100_000,
    "space.initial_tokens.0": 2**27,
    "strategy.evolution.population": 100_000,
    "strategy.evolution.parents": 100_000,
    "strategy.evolution.mutants": 100_000,
    "strategy.evolution.crossovers": 100_000,
    "strategy.evolution.generations": 10**8,
    "strategy.cma.population": 100_000,
    "strategy.cma.knots": 100_000,
    "strategy.cma.sigma": 100,
    "strategy.tpe.population": 100_000,
    "strategy.nsga2.population": 100_000,
    "strategy.random.population": 100_000,
    "budget.candidates": 10**7,
    "budget.tokens": 10**15,
    "budget.seconds": 10**9,
    "budget.no_improvement": 10**7,
    "warm_start.factors.0.scale": 10**6,
    "warm_start.factors.0.rescale_factors.0": 10**9,
    "warm_start.factors.0.attention_factor": 1000,
    "warm_start.factors.0.initial_tokens": 2**27,
    "warm_start.rescale_factors.0.0": 10**9,
    "resources.workers": 100_000,
}
"""Fields of a job, with the largest number that each takes."""
FLOATS = ("scale", "factor", "seconds", "sigma")
STAGES = {
    "finetune": ["settings.steps", "settings.batch_size", "settings.train_length", "settings.gradient_accumulation"],
    "evaluate": [
        "lengths.0",
        "passkey.documents",
        "passkey.lengths.0",
        "ruler.lengths.0",
        "ruler.documents",
        "key_tokens.context",
    ],
}


def job_with(path: str, value: float) -> dict[str, Any]:
    """A job with a number at a place."""
    document: dict[str, Any] = json.loads(json.dumps(JOB))
    *holders, last = path.split(".")
    if holders[:1] == ["strategy"]:
        document["strategy"] = {"kind": holders[1], last: value}
    elif holders == ["model"]:
        document["model"] = {"id": "m", last: value}
    elif holders[:2] == ["warm_start", "factors"]:
        known: dict[str, Any] = {"source": "s", "rescale_factors": [1.0]}
        known[holders[3] if len(holders) > 3 else last] = [value] if len(holders) > 3 else value
        document["warm_start"] = {"factors": [known]}
    elif holders[:1] == ["warm_start"]:
        document["warm_start"] = {"rescale_factors": [[value]]}
    elif path == "space.initial_tokens.0":
        document["space"] = {"initial_tokens": [value]}
    elif path == "objective.tokens":
        document["objective"] = {"stride": 1, "tokens": value}
    else:
        for holder in holders:
            document = document.setdefault(holder, {}) if holder == "x" else document
        place = document.setdefault(holders[0], {}) if holders else document
        place[last] = value
    return document


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_has_a_limit_that_its_message_names(path: str) -> None:
    most = NUMBERS[path]
    is_float = any(word in path.removeprefix("warm_start.factors") for word in FLOATS)
    at, beyond = (float(most), most * 1.01) if is_float else (most, most + (2 if "dimension" in path else 1))
    if path != "objective.stride":  # at most the target length
        parse_spec(job_with(path, at))
    with pytest.raises(SpecError, match=rf"is too large: at most {most:,}"):
        parse_spec(job_with(path, beyond))
    parse_spec(job_with(path, beyond) | ({"target_length": 2**40} if "stride" in path else {}), stored=True)


def test_stages_have_the_limits_too() -> None:
    for kind, paths in STAGES.items():
        for path in paths:
            stage: dict[str, Any] = {"kind": kind}
            first, _, last = path.partition(".")
            if last == "0":
                stage[first] = [2**40]
            else:
                name, _, rest = last.partition(".")
                stage[first] = {name: [2**40] if rest else 2**40}
            document = PLAN | {"stages": [*PLAN["stages"], stage]}
            with pytest.raises(SpecError, match="is too large: at most"):
                parse_plan(document)
    with pytest.raises(SpecError, match="at most 134,217,728 tokens"):
        parse_plan({**PLAN, "stages": [{"kind": "search", "target_length": 2**28}]})
    parse_plan({**PLAN, "stages": [{"kind": "search", "target_length": 2**28}]}, stored=True)


@given(st.sampled_from(sorted(NUMBERS)), st.integers(2**41, 2**52))
@settings(max_examples=20, deadline=None)
def test_the_schema_says_the_limit(path: str, value: int) -> None:
    schema = json.dumps(JobSpec.model_json_schema())
    assert f'"maximum": {NUMBERS[path]}' in schema or f'"maximum": {float(NUMBERS[path])}' in schema
    if path != "budget.tokens":
        with pytest.raises(SpecError, match="too large"):
            parse_spec(job_with(path, value // 2 * 2))


def test_a_job_that_was_stored_before_a_limit_existed_is_read(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    document = job_with("strategy.evolution.population", 10**9)
    job, _ = JobStore(database).submit(parse_spec(document, stored=True))
    assert JobStore(database).get(job.id).parse_spec().strategy.population == 10**9
    assert [one.id for one in JobStore(database).list()] == [job.id]
    database.close()


SLOW = [
    EvolutionSpec(population=100_000, parents=4),
    CmaSpec(population=100_000),
    RandomSpec(population=100_000),
    TpeSpec(population=100_000),
    Nsga2Spec(population=100_000),
]


class StopError(Exception):
    pass


@pytest.mark.parametrize("spec", SLOW, ids=lambda spec: spec.kind)
def test_a_strategy_looks_for_a_stop_while_it_proposes(spec: Any) -> None:
    problem = SearchProblem.of(stub_spec(), PREPARED.geometry)
    looked = 0

    def check() -> None:
        nonlocal looked
        looked += 1
        if looked == 60:
            raise StopError

    strategy = build_strategy(spec, problem.space, problem.seeds, 0, documents=2, check=check)

    def propose_twice() -> None:  # first the closed forms, of some
        for _ in range(2):
            strategy.ask()
            strategy.tell([])

    since = time.monotonic()
    with pytest.raises(StopError):
        propose_twice()
    assert time.monotonic() - since < 30


def test_a_job_is_cancelled_while_its_strategy_proposes(service: Service) -> None:
    service.start(workers=1)
    strategy = {"kind": "evolution", "population": 100_000, "parents": 4, "mutants": 4, "crossovers": 4}
    job, _ = service.jobs.submit(stub_spec(strategy=strategy, budget={"candidates": 10**7}))
    while "searching" not in str(service.jobs.get(job.id).progress):
        time.sleep(0.02)
    service.jobs.cancel(job.id)
    assert service.wait(job.id, seconds=10) == "cancelled"


def test_plans_on_a_slow_disk_do_not_hold_up_others_and_fail_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, clock = threading.Event(), SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr("workers.plan_scheduler.SLOW_SECONDS", 0.01)
    monkeypatch.setattr("workers.plan_scheduler.time", clock)
    with Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database:
        plans, steps = PlanStore(database), PlanSteps(database)

        def advance(scheduler: PlanScheduler, plan: Plan) -> bool:
            if plan.name == "slow":
                released.wait(60)
                return False
            return steps.fail(plan, "advanced")

        monkeypatch.setattr(PlanScheduler, "_advance", advance)
        slow = [plans.submit(name="slow", spec={}, stages=[("a", "search")])[0].id for _ in range(21)]
        quick = plans.submit(name="quick", spec={}, stages=[("a", "search")])[0].id
        scheduler = PlanScheduler(steps, None, prepare_seconds=10)  # type: ignore[arg-type]
        for _ in range(2):
            scheduler.round()
        wait_for(lambda: plans.get(quick).state == "failed", 10)
        assert plans.get(quick).error == "a: advanced"
        plans.pause(slow[0])
        plans.cancel(slow[1])
        scheduler.round()
        plans.resume(slow[0])
        clock.now = 11
        scheduler.round()
        assert plans.get(slow[0]).state == "queued", "it has just begun again"
        assert plans.get(slow[1]).state == "cancelled"
        assert {plans.get(id).error for id in slow[2:]} == {
            "a: looking for the files took longer than 0.166667 min: look for a slow disk or network, or a pattern "
            "that matches too much; an operator can raise the limit with --prepare-minutes"
        }
        clock.now = 22
        scheduler.round()
        assert plans.get(slow[0]).state == "failed"
        released.set()


@settings(max_examples=6)
@given(
    st.sampled_from(["object", "data", "data.files", "space.initial_tokens", "stages"]),
    st.sampled_from([1, None, "a", [], {}]),
)
def test_a_body_with_too_many_values_is_refused_before_anything_looks_at_them(place: str, value: Any) -> None:
    many: Any = [value] * 300_000
    match place:
        case "object":
            document: dict[str, Any] = JOB | {f"k{number}": value for number in range(30_000)}
        case "data.files":
            document = JOB | {"data": {"files": many}}
        case "space.initial_tokens":
            document = JOB | {"space": {"initial_tokens": many}}
        case _:
            document = JOB | {place: many}
    for parse in (submitted_spec, submitted_plan):
        with pytest.raises(RefusedError, match="the body has more than 20,000 values") as refused:
            parse(json.dumps(document).encode())
        assert refused.value.status == 422
    assert len(submitted_spec(json.dumps(JOB | {"data": ["a"] * 10_000}).encode()).data.files or ()) == 10_000


def test_of_many_complaints_the_first_are_told() -> None:
    with pytest.raises(RefusedError, match=r"space.initial_tokens.49: .*; and 850 more$") as refused:
        submitted_spec(json.dumps(JOB | {"space": {"initial_tokens": ["x"] * 900}}).encode())
    assert len(refused.value.faults) == 50


def test_long_lists_and_objects_make_one_complaint() -> None:
    """Pydantic lists all of them in one step, beside which nothing else runs."""
    with pytest.raises(RefusedError, match=r"data.files.0: Input should be a valid string$") as refused:
        submitted_spec(json.dumps(JOB | {"data": {"files": [1] * 19_000}}).encode())
    assert len(refused.value.faults) == 1
    with pytest.raises(RefusedError, match=r"an object of the body has more than 1,000 keys") as refused:
        submitted_spec(json.dumps(JOB | {f"k{number}": 1 for number in range(1001)}).encode())
    assert refused.value.status == 422
