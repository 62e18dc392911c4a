"""Kill a coordinator with SIGKILL at random moments; every search must end as if undisturbed.

Each round submits a search, kills the coordinator that runs it at a random moment, starts another, and compares the
factors with those of an undisturbed search in one process. An evaluation is lost if it was stored at the kill and is
not stored at the end. It is repeated if a worker started it although it was already stored.

    python -m bench.kill_coordinator [--kills 50] [--postgresql]
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.ray_cluster import RayCluster, use_token
from bench.scratch import scratch_database
from factor_search.factors import Factors
from factor_search.job import run_job
from factor_search.measure.evaluation import Evaluation
from factor_search.report.document import build_factors_file
from factor_search.spec import JobSpec, parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files
from storage.database import Database
from storage.jobs import JobStore
from storage.schema import evaluations
from workers.model_worker import ModelWorker, Setting

LOG = "KILL_COORDINATOR_LOG"


def specification(seed: int) -> JobSpec:
    return parse_spec(
        {
            "name": f"kill {seed}",
            "model": {"id": str(CHECKPOINT), "device": "cpu"},
            "data": {
                "files": [str(file) for file in held_out_files()],
                "search_documents": 1,
                "validation_documents": 2,
                "held_out_documents": 2,
            },
            "target_length": 512,
            "strategy": {"kind": "evolution", "population": 16, "parents": 8, "mutants": 4, "crossovers": 4},
            "budget": {"candidates": 64},
            "seed": seed,
        }
    )


def coordinate(arguments: list[str]) -> int:
    """A coordinator whose workers log the start of each candidate."""
    import workers.ray_backend
    from workers import __main__ as command

    noted = Path(os.environ[LOG])

    class NotingWorker(workers.ray_backend.ActorMethods, ModelWorker):
        def evaluate(self, setting: Setting, factors: Factors, samples_sha256: str, **race: Any) -> Evaluation:
            began = time.time()
            evaluation = super().evaluate(setting, factors, samples_sha256, **race)
            with noted.open("a") as log:
                log.write(f"{began} {evaluation.key}\n")
            return evaluation

    plain = workers.ray_backend.RayBackend
    with_notes: Any = lambda *args, **options: plain(*args, **options, worker_class=NotingWorker)  # noqa: E731
    workers.ray_backend.RayBackend = with_notes  # type: ignore[misc]
    return command.main(arguments)


class Campaign:
    """One database, one Ray cluster, one coordinator at a time."""

    def __init__(self, url: str, folder: Path, cluster: RayCluster) -> None:
        self.database = Database(url)
        self.jobs = JobStore(self.database)
        self.folder = folder
        self.cluster = cluster
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "bench.kill_coordinator", "--coordinate", "--database", self.database.url]
        command += ["--ray-address", self.cluster.address, "--root", "/", "--lease-seconds", "2"]
        command += ["--log-level", "error"]
        environment = os.environ | {LOG: str(self.folder / "begun.log"), "PYTHONWARNINGS": "ignore"}
        with (self.folder / "coordinator.log").open("a") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, stdin=subprocess.PIPE, text=True, env=environment
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def recorded(self) -> dict[str, float]:
        with self.database.reading() as connection:
            rows = connection.execute(evaluations.select())
            return {row.key: row.recorded_at for row in rows}

    def wait(self, job_id: str, *states: str, seconds: float = 180) -> str:
        until = time.monotonic() + seconds
        while (state := self.jobs.get(job_id).state) not in states:
            if time.monotonic() > until:
                raise RuntimeError(f"job {job_id} is still {state}: {(self.folder / 'coordinator.log').read_text()}")
            time.sleep(0.05)
        return state

    def duration(self) -> float:
        """Seconds that an undisturbed job takes on workers that are up."""
        for seed in (1001, 1002):  # the first one starts the workers
            job, _ = self.jobs.submit(specification(seed))
            self.wait(job.id, "running", "finished")
            start = time.monotonic()
            self.wait(job.id, "finished")
        return time.monotonic() - start

    def begun(self) -> list[tuple[float, str]]:
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "begun.log").read_text().splitlines()
            return [(float(at), key) for at, key in (line.split() for line in lines if line.count(" ") == 1)]
        return []


def undisturbed(spec: JobSpec, folder: Path) -> dict[str, Any]:
    """The factors of the search in this process."""
    return comparable(build_factors_file(run_job(spec, folder)).as_json())


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("sha256",)}


def run(kills: int, url: str, folder: Path, *, shown: bool = True) -> int:
    """Run the rounds and return how many failed."""
    wrong = lost = repeated = recorded_at_kill = 0
    with RayCluster(cpus=2) as cluster:
        campaign = Campaign(url, folder, cluster)
        campaign.start()
        seconds = campaign.duration()
        print(
            f"an undisturbed job takes {seconds:.1f} s from its claim; kills come at random moments within", flush=True
        )
        for number in range(kills):
            spec = specification(number)
            expected = undisturbed(spec, folder / f"undisturbed-{number}")
            job, _ = campaign.jobs.submit(spec)
            campaign.wait(job.id, "running", "finished")
            moment = random.uniform(0, seconds)
            time.sleep(moment)
            campaign.kill()
            before = campaign.recorded()
            state = campaign.jobs.get(job.id).state
            recorded_at_kill += state != "finished" and bool(before)
            campaign.start()
            ended = campaign.wait(job.id, "finished", "failed")
            factors = campaign.jobs.document(job.id, "factors")
            same = ended == "finished" and factors is not None and comparable(factors) == expected
            after = campaign.recorded()
            lost_now = [key for key, at in before.items() if after.get(key) != at]
            repeated_now = [key for at, key in campaign.begun() if key in after and at > after[key]]
            wrong += not same
            lost += len(lost_now)
            repeated = len(repeated_now)
            if shown:
                verdict = "same factors" if same else f"DIFFERENT ({ended})"
                where = f"{len(before)} evaluations recorded, job {state}"
                print(f"kill {number + 1:3} after {moment:5.2f} s, {where}: {verdict}", flush=True)
        campaign.kill()
        campaign.database.close()
    print(f"{kills} kills: {kills - wrong} ended with the factors of the undisturbed search, {wrong} did not")
    print(f"evaluations lost: {lost}, repeated: {repeated}")
    return wrong + lost + repeated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--postgresql", action="store_true", help="on an embedded PostgreSQL instead of SQLite")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FACTOR_SEARCH_CACHE"] = str(folder / "cache")
        with scratch_database("postgresql" if arguments.postgresql else "sqlite") as url:
            return int(run(arguments.kills, url, folder) > 0)


if __name__ == "__main__":
    use_token()
    if "--coordinate" in sys.argv:
        sys.exit(coordinate([argument for argument in sys.argv[1:] if argument != "--coordinate"]))
    sys.exit(main())
