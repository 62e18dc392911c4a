"""What earlier versions stored is what this one computes: identities, keys, JSON, folders of results, a database."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from factor_search.factors import Factors
from factor_search.factors_file import parse_factors
from factor_search.files.canonical_json import sha256_of
from factor_search.finetune.spec import FinetuneSpec
from factor_search.job import run_job
from factor_search.measure.evaluation import EARLIER_IDENTITY, evaluation_key
from factor_search.plan.kinds.contract import Outcome
from factor_search.plan.report import plan_report
from factor_search.plan.run import PlanWatcher, run_plan
from factor_search.plan.spec import parse_plan
from factor_search.plan.work import parse_work, work_of
from factor_search.report.document import build_factors_file, build_report
from factor_search.spec import ModelSpec, parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.text.samples import SampleSet, sample_of
from storage import schema
from storage.asked import Asked
from storage.database import Database
from storage.errors import ConflictError
from storage.evaluations import EvaluationStore
from storage.jobs import JobStore
from storage.plans import PlanStore
from tests.processes import wait_for
from tests.service import Service
from workers.model_worker import ModelWorker
from workers.plan_scheduler import earlier_identity

EARLIER = Path(__file__).parent / "earlier"
STAGES_OF_PLAN = [("search-1", "search"), ("search-2", "search"), ("evaluate-1", "evaluate"), ("export-1", "export")]
JOBS: dict[str, dict[str, Any]] = {
    "short": {"model": "m", "data": "books/*.txt", "target_length": 1024},
    "long": {
        "name": "all keys",
        "model": {"id": "m", "revision": "r", "dtype": "bfloat16", "attention": "eager", "original_length": 64},
        "data": {"files": ["a", "b"], "held_out_files": ["c"], "cut_long_documents": True, "least_tokens": 4096},
        "target_length": 1024,
        "objective": {"kind": "perplexity", "stride": 512, "tokens": 2048},
        "space": {"initial_tokens": [0, 4], "attention_factor": "search", "upper_bound": 2.0, "scale": 8.0},
        "strategy": {"kind": "evolution", "population": 8, "parents": 4},
        "budget": {"candidates": None, "seconds": 1.5, "no_improvement": 9},
        "racing": {"error_rate": 0.05},
        "warm_start": {"factors": [{"source": "s", "rescale_factors": [1.0, 2.0]}], "rescale_factors": [[1.0, 3.5]]},
        "resources": {"workers": 2, "gpus": 0.5},
        "seed": 3,
    },
    "needle": {"model": "m", "data": {"dataset": "d", "name": "n"}, "target_length": 99, "objective": "needle"},
    "cma": {"model": "m", "data": ["x"], "target_length": 99, "strategy": "cma", "racing": True},
}
STAGES: list[dict[str, Any]] = [
    {"kind": "search", "target_length": 128, "budget": 14, "strategy": {"kind": "cma", "knots": 4}},
    {"kind": "finetune", "settings": {"steps": 6, "method": "lora", "learning_rate": 1e-3}},
    {"kind": "search", "target_length": 256, "space": {"attention_factor": 1.05}},
    {"kind": "await_checkpoint"},
    {"kind": "readjust", "attention_factor": "search"},
    {"kind": "readjust", "budget": 9},
    {"kind": "evaluate", "lengths": [64, 100], "harness": ["piqa"], "passkey": {"depths": 2, "lengths": [224]}},
    {"kind": "evaluate", "passkey": None},
    {"kind": "export", "profile": "switching"},
    {"kind": "export"},
]
PLANS: dict[str, dict[str, Any]] = {
    "stages": {"model": "hub/m", "data": {"files": ["t/*.txt"], "held_out_files": ["t/0.txt"]}, "stages": STAGES},
    "longrope": {"model": "hub/m", "data": ["t/*.txt"], "recipe": "longrope", "target_length": 1024, "seed": 4},
    "longrope2": {
        "model": {"id": "hub/m", "original_length": 64},
        "data": ["t/*.txt"],
        "training_files": ["t/1.txt"],
        "recipe": "longrope2",
        "target_length": 1024,
    },
}


def factors_document(target_length: int, value: float) -> dict[str, Any]:
    model = {
        "id": "hub/m",
        "architecture": "LlamaForCausalLM",
        "rope_theta": 10000.0,
        "rotary_dim": 4,
        "original_length": 64,
        "base_rope_type": "default",
    }
    return parse_factors(
        {
            "schema": "factor-search/factors@1",
            "model": model,
            "target_length": target_length,
            "scale": target_length / 64,
            "rescale_factors": [1.0, value],
            "initial_tokens": 0,
            "attention_factor": 1.125,
        }
    ).as_json()


def outcome_of(kind: str, number: int) -> Outcome:
    if kind in ("search", "readjust"):
        return Outcome(factors=factors_document(64 if kind == "readjust" else 128 + number, 2.0 + number), report={})
    made = ModelSpec(id=f"hub/made-{number}", original_length=64) if kind in ("finetune", "await_checkpoint") else None
    return Outcome(model=made, report={"number": number})


def works(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Each stage's work with its identities, with results made up for the stages before."""
    plan, outcomes, found = parse_plan(document), [], []
    for number, stage in enumerate(plan.expanded().stages or ()):
        work = work_of(plan, number, outcomes)
        stored = work.model_dump(mode="json")
        assert parse_work(stored) == work
        found.append({"stored": stored, "sha256": work.sha256, "identity": earlier_identity(work)})
        outcomes.append(outcome_of(stage.kind, number))
    return found


def computed() -> dict[str, Any]:
    factors = Factors.of([1.0, 1.5, 4.0], 4, 1.25)
    samples = SampleSet("search", tuple(sample_of(str(n), n + _ids()) for n in (1, 2)))
    scored = SampleSet("search", (sample_of("s", _ids(), (3, 5)),))
    model = {"model": "content", "dtype": "float32", "attention": "sdpa"}
    return {
        "jobs": {
            name: {"stored": parse_spec(job).model_dump(mode="json"), "sha256": parse_spec(job).sha256}
            for name, job in JOBS.items()
        },
        "plans": {
            name: {"stored": parse_plan(plan).expanded().model_dump(mode="json"), "works": works(plan)}
            for name, plan in PLANS.items()
        },
        "finetune": FinetuneSpec(data_form="segments", steps=9).sha256,
        "factors": factors.sha256,
        "factors_file": factors_document(128, 2.0),
        "samples": [samples.sha256, scored.sha256],
        "keys": [
            evaluation_key(model, 64, 256, None, factors, samples),
            evaluation_key(model, 64, 256, None, factors, samples, 1),
            evaluation_key(model, 64, 256, 32, factors, scored),
        ],
    }


def _ids() -> Any:
    import numpy as np

    return np.arange(16, dtype=np.int64)


def test_identities_keys_and_stored_json_are_those_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts()
    assert only_known(computed(), golden := json.loads((EARLIER / "golden.json").read_text())) == golden


LATER: dict[str, dict[str, Any]] = {
    "export": {"format": "huggingface", "nearest": False},
    "evaluate": {"ruler": None, "key_tokens": None},
}
"""Fields that kinds of stages have gained, with the values that mean what they did before."""
LATER_IN_JOBS = {"baselines": None, "form": None, "short_window": None}
"""The same for jobs and search stages."""
LATER_IN_WARM_STARTS = ("original_length",)
"""What is told of known factors since, which is not part of an identity."""


LATER_IN_ROWS = ("divergence", "divergence_standard_error")
"""What a row of a report tells since."""
LATER_IN_REPORTS = ("measured_on", "measured_with", "short_context", "front", "divergence")
"""Keys that reports of searches have gained."""


def only_known(now: Any, earlier: Any) -> Any:
    """The document without fields that did not exist, if they have the values of :data:`LATER`."""
    if isinstance(now, list):
        return [only_known(a, b) for a, b in zip(now, earlier, strict=True)]
    if not isinstance(now, dict):
        return now
    later = LATER_IN_JOBS | LATER.get(str(now.get("kind")), {})
    told = {key: now[key] for key in LATER_IN_WARM_STARTS if "rescale_factors" in now and key in now}
    told |= {key: now[key] for key in LATER_IN_ROWS if key in now}
    kept = {key: value for key, value in now.items() if key in earlier or (key, value) not in (later | told).items()}
    return {key: only_known(value, earlier.get(key)) for key, value in kept.items()}


def write_texts() -> None:
    Path("t").mkdir()
    for number in range(2):
        file = Path(f"t/{number}.txt")
        file.write_text("x" * (number + 1))
        os.utime(file, (1_700_000_000, 1_700_000_000))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as an earlier version left it; the current one, since all paths in it are relative."""
    with tarfile.open(EARLIER / "scene.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    times = json.loads((EARLIER / "model_times.json").read_text())  # part of the identities of finished stages
    (tmp_path / "model").mkdir()
    for name, time_ns in times.items():
        shutil.copyfile(CHECKPOINT / name, tmp_path / "model" / name)
        os.utime(tmp_path / "model" / name, ns=(time_ns, time_ns))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_versions(document: dict[str, Any]) -> dict[str, Any]:
    """The content of a factors file or report, but for what computed it, what that took, and what was not told yet."""
    left_out = ("sha256", "versions", "estimate", "taken", "measured_on", "measured_with", "short_context")
    kept = {key: value for key, value in document.items() if key not in left_out}
    if "provenance" in kept:
        kept["provenance"] = {key: value for key, value in kept["provenance"].items() if key != "versions"}
    return kept


def test_a_folder_of_results_continues(scene: Path) -> None:
    out = scene / "search"
    before = (out / "evaluations.jsonl").read_bytes()
    factors, report = (json.loads((out / name).read_text()) for name in ("factors.json", "report.json"))
    job = json.loads((scene / "job.json").read_text())
    result = run_job(parse_spec(job), out)
    after = (out / "evaluations.jsonl").read_bytes()
    assert after.startswith(before)
    added = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert {line["part"] for line in added} == {"divergence"}, "nothing is evaluated again"
    assert without_versions(build_factors_file(result).as_json()) == without_versions(factors)
    now = build_report(result)
    assert set(now["measured_with"]) == set(EARLIER_IDENTITY), "the device and the releases of then are not known"
    now = {key: value for key, value in now.items() if key not in LATER_IN_REPORTS}
    assert only_known(without_versions(now), without_versions(report)) == without_versions(report)
    more = run_job(parse_spec(job | {"budget": 16}), out)
    before, after = after, (out / "evaluations.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    assert len(more.state.candidates) == 16


def test_a_folder_of_a_plan_continues(scene: Path) -> None:
    out, done = scene / "plan", []
    for file in out.glob(".stages/*/outcome.json"):  # the export's model lies elsewhere, and is not in the archive
        outcome = json.loads(file.read_text())
        if outcome["model"] is not None:
            outcome["model"]["id"] = str(CHECKPOINT)
            file.write_text(json.dumps(outcome))
    watcher = PlanWatcher(stage=lambda number, work, known: done.append((work.stage, known)))
    before = json.loads((out / "report.json").read_text())
    result = run_plan(parse_plan(json.loads((scene / "plan.json").read_text())), out, watcher)
    assert done == [("search-1", True), ("search-2", True), ("evaluate-1", True), ("export-1", True)]
    after = plan_report(result.plan, result.works, result.outcomes)
    for stage, earlier in zip(after["stages"], before["stages"], strict=True):
        words = {"model": None, "summary": None}  # where the model is, and sentences
        assert stage | words == earlier | words
    assert after["comparisons"] == before["comparisons"]


def test_a_request_of_an_earlier_version_is_recognised_when_it_is_repeated(scene: Path) -> None:
    ids = json.loads((scene / "ids.json").read_text())
    with Database(f"sqlite:///{scene / 'jobs.db'}") as database:
        jobs, plans = JobStore(database), PlanStore(database)
        with database.writing() as connection:
            for table in (schema.jobs, schema.plans):
                connection.execute(update(table).values(idempotency_key=table.c.id))
        for name in ("finished", "paused", "queued"):
            spec = parse_spec(jobs.get(ids[name]).spec)
            assert jobs.submit(spec, idempotency_key=ids[name]) == (jobs.get(ids[name]), False)
            for change in ({"baselines": ["yarn"]}, {"seed": 99}):
                with pytest.raises(ConflictError, match="was used for another job"):
                    jobs.submit(spec.model_copy(update=change), idempotency_key=ids[name])
        for name in ("plan_finished", "plan_paused"):
            plan = parse_plan(plans.get(ids[name]).spec).expanded()
            whole: dict[str, Any] = {"name": plan.name, "spec": plan.model_dump(mode="json"), "stages": STAGES_OF_PLAN}
            assert plans.submit(**whole, asked=Asked.of(plan), idempotency_key=ids[name])[0].id == ids[name]
            other = plan.model_copy(update={"seed": 99})
            with pytest.raises(ConflictError, match="was used for another plan"):
                plans.submit(**whole, asked=Asked.of(other), idempotency_key=ids[name])


@given(number=st.sampled_from(sorted(JOBS)), data=st.data())
def test_a_request_is_recognised_after_any_fields_with_defaults_were_added(number: str, data: st.DataObject) -> None:
    asked = Asked.of(parse_spec(JOBS[number]))

    def earlier(whole: Any, given: Any) -> Any:
        """Without some fields that have their defaults."""
        if not isinstance(whole, dict):
            return whole
        given = given if isinstance(given, dict) else {}
        kept = [key for key in whole if key in given or data.draw(st.booleans(), label=key)]
        return {key: earlier(whole[key], given.get(key)) for key in kept}

    before = earlier(asked.whole, asked.given)
    pinned = before | {"model": before["model"] | {"revision": "f" * 40}}
    stored = pinned if "revision" in before["model"] else before
    assert asked.repeats(sha256_of(before), stored)
    other = Asked.of(parse_spec(JOBS[number] | {"seed": 98}))
    assert not other.repeats(sha256_of(before), stored)


@pytest.mark.slow
def test_jobs_and_plans_of_a_database_continue(scene: Path) -> None:
    ids = json.loads((scene / "ids.json").read_text())
    service = Service(f"sqlite:///{scene / 'jobs.db'}", work_folder=Path("made"))
    plans, evaluations = PlanStore(service.database), EvaluationStore(service.database)
    try:
        known = {row.key: row.evaluation for row in evaluations.of_job(ids["paused"], limit=1000) if row.evaluation}
        assert len(known) >= 8
        service.start(workers=1, make=lambda: ModelWorker(threads=1))  # type: ignore[arg-type, return-value]
        service.jobs.resume(ids["paused"])
        plans.resume(ids["plan_paused"])
        assert service.wait(ids["paused"], seconds=120) == "finished"
        rows = {row.key: row for row in evaluations.of_job(ids["paused"], limit=1000)}
        assert {key: rows[key].evaluation for key in known} == known
        assert len({row.factors for row in rows.values()}) == 40
        wait_for(lambda: plans.get(ids["plan_paused"]).state == "finished", 120)
        again, _ = plans.submit(  # the same plan as one that the earlier version has finished
            name="again", spec=plans.get(ids["plan_finished"]).spec, stages=STAGES_OF_PLAN
        )
        wait_for(lambda: plans.get(again.id).state == "finished", 120)
        reused = {stage.name: stage.reused for stage in plans.get(again.id).stages[:3]}  # the exported model is gone
        assert reused == {"search-1": True, "search-2": True, "evaluate-1": True}
    finally:
        service.stop()
        service.database.close()
