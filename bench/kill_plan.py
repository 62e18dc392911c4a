"""Kill a coordinator with SIGKILL at random moments of every stage of a plan; the plan must end as if undisturbed.

Each round has its own database and work folder. It submits the same small plan on the shipped model, kills the
coordinator at a random moment of one stage, starts another, and compares the results of every stage with an
undisturbed run: factors, the bytes of the weights, and all measurements.

    python -m bench.kill_plan [--kills 6]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ray_cluster import RayCluster, use_token
from factor_search.files.canonical_json import sha256_of
from factor_search.plan.spec import parse_plan
from factor_search.plan.work import parse_outcome
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files, standard_library
from storage.database import Database
from storage.jobs import JobStore
from storage.plans import Plan, PlanStore

SECONDS = 600
TIMES = ("seconds", "versions", "folder", "checkpoint", "taken", "estimate")
"""The parts of a report that may differ between two runs."""


def specification() -> dict[str, Any]:
    """A plan with every kind of stage that needs no user, a few seconds each."""
    return {
        "name": "kill",
        "model": {"id": str(CHECKPOINT), "device": "cpu"},
        "data": {
            "files": [str(file) for file in held_out_files()],
            "search_documents": 2,
            "validation_documents": 2,
            "held_out_documents": 2,
        },
        "training_files": [str(standard_library() / "*.py")],
        "stages": [
            {"kind": "search", "target_length": 512, "budget": 40},
            {
                "kind": "finetune",
                "settings": {"steps": 24, "batch_size": 4, "learning_rate": 1e-4, "checkpoint_every": 4},
            },
            {"kind": "search", "target_length": 1024, "budget": 40},
            {"kind": "readjust", "budget": 40},
            {"kind": "evaluate", "passkey": {"lengths": [512, 1024], "depths": 3}},
            {"kind": "export", "profile": "switching"},
        ],
    }


@dataclass
class Ended:
    """A finished plan."""

    made: dict[str, str]
    """Hash of each stage's result, by its name."""
    seconds: dict[str, float]
    """Duration of each stage, by its name."""


class Round:
    """A database, a work folder, and one coordinator at a time."""

    def __init__(self, folder: Path, cluster: RayCluster) -> None:
        folder.mkdir()
        self._folder, self._cluster = folder, cluster
        self._database = Database(f"sqlite:///{folder / 'jobs.db'}")
        self.plans, self._jobs = PlanStore(self._database), JobStore(self._database)
        self._process: subprocess.Popen[str] | None = None

    def submit(self) -> str:
        plan = parse_plan(specification()).expanded()
        stages = [(str(stage.name), stage.kind) for stage in plan.stages or ()]
        return self.plans.submit(name=plan.name, spec=plan.model_dump(mode="json"), stages=stages)[0].id

    def start(self) -> None:
        command = [sys.executable, "-m", "workers", "--database", self._database.url, "--root", "/"]
        command += ["--work", str(self._folder / "work"), "--ray-address", self._cluster.address]
        command += ["--lease-seconds", "2", "--log-level", "error"]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        with (self._folder / "coordinator.log").open("a") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, stdin=subprocess.PIPE, text=True, env=environment
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def until_running(self, plan_id: str, stage: int) -> None:
        """Wait until the job of a stage runs, or the plan is past the stage."""

        def begun(plan: Plan) -> bool:
            return plan.stage > stage or (plan.stage == stage and plan.job is not None and plan.job.state == "running")

        self._wait(plan_id, begun)

    def end(self, plan_id: str) -> Ended:
        plan = self._wait(plan_id, lambda plan: plan.state in ("finished", "failed"))
        if plan.state == "failed":
            raise RuntimeError(f"the plan failed: {plan.error}")
        jobs = {stage.name: self._jobs.get(str(stage.job_id)) for stage in plan.stages}
        return Ended(
            {stage.name: made(stage.outcome) for stage in plan.stages},
            {name: (job.ended_at or 0.0) - (job.started_at or 0.0) for name, job in jobs.items()},
        )

    def close(self) -> None:
        self.kill()
        self._database.close()

    def _wait(self, plan_id: str, there: Callable[[Plan], bool]) -> Plan:
        until = time.monotonic() + SECONDS
        while not there(plan := self.plans.get(plan_id)):
            if time.monotonic() > until:
                raise RuntimeError(f"the plan is still {plan.state}: {(self._folder / 'coordinator.log').read_text()}")
            time.sleep(0.05)
        return plan


def made(document: Any) -> str:
    """A hash of a stage's result: factors, the bytes of its checkpoint's weights, and its measurements."""
    outcome = parse_outcome(document)
    weights = None
    if outcome.model is not None:
        weights = sha256_of((Path(outcome.model.id) / "model.safetensors").read_bytes().hex())
    factors = outcome.factors and {name: outcome.factors[name] for name in ("rescale_factors", "attention_factor")}
    return sha256_of([factors, weights, without_times(outcome.report)])


def without_times(value: Any) -> Any:
    """The document without the names of folders and without durations."""
    if isinstance(value, dict):
        left_out = (*TIMES, "id", "spec", "model")
        return {key: without_times(item) for key, item in value.items() if key not in left_out}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def run(kills: int, folder: Path) -> int:
    """Run the rounds and return how many failed."""
    wrong = 0
    with RayCluster(cpus=2) as cluster:
        first = Round(folder / "undisturbed", cluster)
        first.start()
        undisturbed = first.end(first.submit())
        first.close()
        print("undisturbed: " + ", ".join(f"{name} {took:.1f} s" for name, took in undisturbed.seconds.items()))
        for number in range(kills):
            stage = number % len(undisturbed.seconds)
            name, took = list(undisturbed.seconds.items())[stage]
            one = Round(folder / f"round-{number}", cluster)
            one.start()
            plan_id = one.submit()
            one.until_running(plan_id, stage)
            moment = random.uniform(0, 0.7 * took)  # the first run is the slowest
            time.sleep(moment)
            one.kill()
            there = one.plans.get(plan_id)
            one.start()
            ended = one.end(plan_id)
            one.close()
            different = [key for key, value in ended.made.items() if undisturbed.made[key] != value]
            wrong += bool(different)
            verdict = f"DIFFERENT in {', '.join(different)}" if different else "all stages the same"
            at = there.present.name if there.present is not None and there.state != "finished" else "the end"
            print(f"kill {number + 1:3} aimed at {name} after {moment:5.2f} s, plan at {at}: {verdict}", flush=True)
    print(f"{kills} kills: {kills - wrong} plans ended as the undisturbed one, {wrong} did not")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=6, help="number of kills, spread evenly over the six stages")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        os.environ["FACTOR_SEARCH_CACHE"] = str(Path(name) / "cache")
        return int(run(arguments.kills, Path(name)) > 0)


if __name__ == "__main__":
    use_token()
    sys.exit(main())
