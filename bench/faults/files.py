"""Faults that need a real model: files that change under a job, disks that are full under a plan."""

import itertools
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from safetensors.torch import load_file, save_file

from bench.faults.service import Service, StuckError, comparable
from bench.kill_plan import made
from factor_search.job import run_job
from factor_search.report.document import build_factors_file
from factor_search.spec import parse_spec
from factor_search.testbed import CHECKPOINT
from storage.evaluations import EvaluationStore
from storage.jobs import JobStore
from storage.plans import Plan, PlanStore
from storage.states import ENDED

WEIGHTS = "model.safetensors"
SEARCH = {
    "target_length": 512,
    "strategy": {"kind": "evolution", "population": 8, "parents": 4, "mutants": 4, "crossovers": 4},
    "budget": 40,
}
STAGES = [
    {"kind": "search", "target_length": 512, "budget": 8},
    {"kind": "finetune", "settings": {"steps": 6, "batch_size": 2, "learning_rate": 1e-4, "checkpoint_every": 2}},
    {"kind": "export", "profile": "static"},
]

_numbers = itertools.count()
_undisturbed: dict[str, dict[str, str]] = {}
"""Results of the plan's stages, by the mark of the service."""


def fresh_inputs(service: Service) -> tuple[Path, Path]:
    """A model and documents that no earlier job has used: the file of the weights differs, the weights do not."""
    number = next(_numbers)
    model, documents = service.root / f"model-{number}", service.root / f"documents-{number}"
    shutil.copytree(CHECKPOINT, model)
    shutil.copytree(service.root / "documents", documents)
    save_file(load_file(model / WEIGHTS), model / WEIGHTS, metadata={"format": "pt", "number": str(number)})
    return model, documents


def change_files(what: str) -> Callable[[Service, random.Random], str]:
    """A fault that changes the model or a document under a running job."""

    def inject(service: Service, rng: random.Random) -> str:
        model, documents = fresh_inputs(service)
        data = {"files": [str(documents / "*.txt")], "search_documents": 2, "validation_documents": 1}
        changes = SEARCH | {"data": data | {"held_out_documents": 1}}
        document = service.specification(model.name, **changes)
        with tempfile.TemporaryDirectory() as name:
            expected = comparable(build_factors_file(run_job(parse_spec(document), Path(name))).as_json())
        id = service.submit(document)
        wait_for_job(service, id, 4)
        file = model / WEIGHTS if what == "model" else rng.choice(sorted(documents.iterdir()))
        how = change(file, rng)
        for process in service.find("worker"):
            process.kill()
        if what == "document" or rng.random() < 0.5:
            service.kill("coordinator")
        state, error = wait_for_job(service, id, None)
        with service.database() as database:
            factors = JobStore(database).document(id, "factors")
        if state == "finished" and comparable(factors or {}) != expected:
            raise StuckError(f"{how}: the job finished with other factors, and says nothing of the change")
        if state == "failed" and not any(word in error for word in (model.name, documents.name, "document", "model")):
            raise StuckError(f"{how}: the job failed without the reason: {error}")
        return f"{how}: the job {state}{': ' + error if error else ', as if undisturbed'}"

    return inject


def change(file: Path, rng: random.Random) -> str:
    """Change, replace or delete a file; returns what was done."""
    status, content = file.stat(), bytearray(file.read_bytes())
    how = rng.choice(("changed in place at the same size and time", "replaced by another", "deleted"))
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(content[middle : middle + 4096])[::-1]
    if how == "deleted":
        file.unlink()
    elif how.startswith("replaced"):
        other = file.with_name("other")
        other.write_bytes(content)
        other.replace(file)
    else:
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"{file.name} was {how}"


def wait_for_job(service: Service, id: str, candidates: int | None) -> tuple[str, str]:
    """Wait for the end of a job, or until so many of its candidates are done; returns its state and error."""
    until = time.monotonic() + 3 * service.patience
    while True:
        service.restart()
        with service.database() as database:
            job = JobStore(database).get(id)
            done = sum(row.state == "done" for row in EvaluationStore(database).of_job(id))
        if job.state in ENDED or (candidates is not None and done >= candidates):
            return job.state, job.error or ""
        if time.monotonic() > until:
            raise StuckError(f"the job is still {job.state}")
        time.sleep(0.1)


def disturb_plan(service: Service, rng: random.Random, name: str, how: str) -> str:
    """Fill a disk, or make it read-only, at a random moment of a plan; afterwards the plan must end as undisturbed."""
    if service.mark not in _undisturbed:
        _undisturbed[service.mark] = results(service, wait_for_plan(service, submit_plan(service), ENDED))
    id = submit_plan(service)
    at = rng.randrange(len(STAGES))
    wait_for_plan(service, id, ENDED, at)
    disk = service.disks[name]
    done = disk.fill() if how == "full" else disk.set_read_only(True)
    try:
        time.sleep(rng.uniform(2, 8))
    finally:
        disk.empty() if how == "full" else disk.set_read_only(False)
    if not done:
        return "a file was open, so the disk could not be made read-only"
    plan = wait_for_plan(service, id, ENDED)
    said = plan.error or ""
    if plan.state == "failed":
        if not any(words in said.lower() for words in ("no space left", "read-only", "disk is full")):
            raise StuckError(f"the plan failed without the reason: {said}")
        answer = httpx2.post(f"http://127.0.0.1:{service.port}/v1/plans/{id}/retry", timeout=20.0)
        answer.raise_for_status()
        plan = wait_for_plan(service, id, ENDED)
    if plan.state != "finished":
        raise StuckError(f"after the disk was restored, the plan ended as {plan.state}: {plan.error}")
    different = [stage for stage, value in results(service, plan).items() if _undisturbed[service.mark][stage] != value]
    if different:
        raise StuckError(f"results of {', '.join(different)} differ from those of the undisturbed plan")
    return f"at stage {at + 1}: " + (f"failed with {said!r}, and finished when retried" if said else "finished")


def submit_plan(service: Service) -> str:
    model, documents = fresh_inputs(service)
    data = {"files": [str(documents / "*.txt")], "search_documents": 1, "validation_documents": 1}
    body: dict[str, Any] = {
        "name": f"plan on {model.name}",
        "model": {"id": str(model), "device": "cpu"},
        "data": data | {"held_out_documents": 1},
        "training_files": [str(documents / "*.txt")],
        "stages": STAGES,
    }
    answer = httpx2.post(f"http://127.0.0.1:{service.port}/v1/plans", json=body, timeout=60.0)
    if answer.status_code != 201:
        raise StuckError(f"a plan was refused: {answer.text}")
    return str(answer.json()["id"])


def wait_for_plan(service: Service, id: str, states: tuple[str, ...], stage: int | None = None) -> Plan:
    """Wait until a plan is in a state, or runs one of its stages."""
    until = time.monotonic() + 3 * service.patience
    while True:
        with service.database() as database:
            plan = PlanStore(database).get(id)
        runs = plan.job is not None and plan.job.state == "running"
        if plan.state in states or (stage is not None and (plan.stage > stage or (plan.stage == stage and runs))):
            return plan
        if time.monotonic() > until:
            raise StuckError(f"the plan is still {plan.state}, at stage {plan.stage + 1}")
        time.sleep(0.1)


def results(service: Service, plan: Plan) -> dict[str, str]:
    """A hash of each stage's result."""
    if plan.state != "finished":
        raise StuckError(f"the undisturbed plan ended as {plan.state}: {plan.error}")
    return {stage.name: made(without_names(stage.outcome)) for stage in plan.stages}


def without_names(outcome: Any) -> Any:
    """The outcome without the numbers of :func:`fresh_inputs`."""
    return json.loads(re.sub(r"(model|documents)-\d+", r"\1", json.dumps(outcome)))
