"""A campaign of files with something wrong in them: each is submitted to the service, and loaded in another process.

``python -m bench.mutations`` mutates configurations, tokenizers, weights, GGUF files, factors and documents at random.
The process with the REST interface must accept each or refuse it, with one line and a status below 500; the process
that loads must succeed or raise one FactorSearchError of one line. Neither may take longer than 10 s of processor time,
and the first may not take more than 1.5 GB. A case is repeated with ``--seed S --number N``.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.mutated_files import KINDS, WRITERS, Mutation
from bench.mutation_materials import make_materials

PROCESSOR_SECONDS = 10
PATIENCE = 120
"""Seconds after which a process is ended that has not answered."""
API_BYTES = 1.5e9
ADDRESS_BYTES = 10 * 2**30
"""Address space of each process, which protects the machine."""


@dataclass(frozen=True)
class Answer:
    """What came of one case in one process."""

    fault: str | None
    """What is wrong with how it was answered; None if nothing is."""
    message: str
    """The refusal; empty if there was none."""
    seconds: float = 0.0
    """Of processor time."""
    peak: int = 0
    """The largest resident size of the process meanwhile, in bytes."""


def judged(error: Exception) -> tuple[str | None, str]:
    """The fault in an error that was raised, and its message."""
    from factor_search.errors import FactorSearchError

    message = str(error)
    if not isinstance(error, FactorSearchError):
        return f"{type(error).__name__}", message
    return ("several lines" if "\n" in message or not message else None), message


def submit(folder: Path) -> Callable[[dict[str, Any]], tuple[str | None, str]]:
    """Return what submits a job to the application of the service, with a database in a folder."""
    from starlette.testclient import TestClient

    from api.app import create_app
    from api.settings import Settings
    from workers.policy import Policy

    policy = Policy((folder,), allow_hub=False, allow_remote_code=False)
    url = f"sqlite:///{folder / 'jobs.db'}"
    client = TestClient(
        create_app(Settings(database_url=url, policy=policy, loopback=True)),
        base_url="http://127.0.0.1",
        raise_server_exceptions=False,
    )

    client.__enter__()  # starts the application, until the process ends

    def post(document: dict[str, Any]) -> tuple[str | None, str]:
        response = client.post("/v1/jobs", json=document)
        if response.status_code == 201:
            return None, ""
        detail = str(response.json().get("detail", ""))
        if response.status_code >= 500:
            return f"status {response.status_code}", detail
        return ("several lines" if "\n" in detail or not detail else None), detail

    return post


def load(folder: Path) -> Callable[[dict[str, Any]], tuple[str | None, str]]:
    """Return what loads the model and the documents of a job, as a search does before its first candidate."""
    from factor_search.export.reading import read_foreign
    from factor_search.job import read_samples
    from factor_search.model.injection import probe
    from factor_search.model.loading import load_model
    from factor_search.search.warm_start import embedded
    from factor_search.spec import parse_spec

    def read(document: dict[str, Any]) -> tuple[str | None, str]:
        try:
            spec = parse_spec(document)
            if spec.warm_start.files:
                read_foreign(spec.warm_start.files[0], model=spec.model)
                embedded(spec)
                return None, ""
            loaded = load_model(spec.model)
            probe(loaded.model, loaded.geometry)
            read_samples(spec, loaded)
        except Exception as error:
            return judged(error)
        return None, ""

    return read


def answering(
    make: Callable[[Path], Callable[..., tuple[str | None, str]]], folder: Path, connection: Connection
) -> None:
    """Answer documents that come over a connection until it is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    answer = make(folder)
    connection.send(None)
    while True:
        try:
            document = connection.recv()
        except EOFError:
            return
        Path("/proc/self/clear_refs").write_text("5")  # the largest size begins anew
        begun = time.process_time()
        try:
            fault, message = answer(document)
        except BaseException as error:  # what no caller catches, such as a panic of Rust's
            fault, message = type(error).__name__, str(error)
        seconds, peak = time.process_time() - begun, _peak()
        if fault is None and seconds > PROCESSOR_SECONDS:
            fault = "slow"
        if fault is None and make is submit and peak > API_BYTES:
            fault = "memory"
        connection.send(Answer(fault, message[:400], seconds, peak))


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Child:
    """A process that answers, started again when it ends or hangs."""

    def __init__(self, make: Callable[[Path], Callable[..., tuple[str | None, str]]], folder: Path) -> None:
        self.make, self.folder = make, folder
        self.process: Any = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=answering, args=(self.make, self.folder, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()

    def ask(self, document: dict[str, Any]) -> Answer:
        """The answer to a document, or what came instead of one."""
        try:
            self.connection.send(document)
            if self.connection.poll(PATIENCE):
                answer: Answer = self.connection.recv()
                return answer
            fault = "no answer"
        except EOFError:
            fault = "the process died"
        self.end()
        self.start()
        return Answer(fault, "")

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def campaign(seed: int, numbers: Sequence[int], folder: Path, *, verbose: bool = False) -> int:
    """Try cases, print each fault and a table by kind, and return the number of faults."""
    make_materials(folder / "materials")
    rows: dict[str, Counter[str]] = {kind: Counter() for kind in WRITERS}
    largest = {"api": 0, "load": 0}
    slowest = {"api": 0.0, "load": 0.0}
    children = {"api": Child(submit, folder), "load": Child(load, folder)}
    for count, number in enumerate(numbers):
        if sys.stderr.isatty() or count % 100 == 99:
            print(f"{count + 1} of {len(numbers)} cases", file=sys.stderr, flush=True)
        place = folder / f"case-{number}"
        place.mkdir()
        case = Mutation(folder / "materials", place, seed, number)
        row = rows[case.kind]
        row["cases"] += 1
        for name, child in children.items():
            answer = child.ask(case.document)
            row[f"{name} {'fault' if answer.fault else 'refused' if answer.message else 'taken'}"] += 1
            largest[name], slowest[name] = max(largest[name], answer.peak), max(slowest[name], answer.seconds)
            if answer.fault or verbose:
                print(
                    f"{number} {case.kind}, {name}: {answer.fault}: {'; '.join(case.what)}: {answer.message}",
                    flush=True,
                )
        shutil.rmtree(place)
    for child in children.values():
        child.end()
    columns = ["cases", *(f"{name} {what}" for name in children for what in ("taken", "refused", "fault"))]
    print(f"{'':24}" + "".join(f"{column:>14}" for column in columns))
    for kind, row in rows.items():
        print(f"{kind:24}" + "".join(f"{row[column]:>14}" for column in columns))
    for name in children:
        print(f"{name}: at most {largest[name] / 1e9:.2f} GB and {slowest[name]:.1f} s of processor time for a case")
    return sum(row[f"{name} fault"] for row in rows.values() for name in children)


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (default: 0)")
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--number", type=int, action="append", help="only this case; may be repeated")
    parser.add_argument("--verbose", action="store_true", help="print every answer, not only faults")
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    numbers = arguments.number or range(arguments.cases)
    with tempfile.TemporaryDirectory(prefix="mutations") as folder:
        os.environ["FACTOR_SEARCH_CACHE"] = str(Path(folder, "cache"))
        faults = campaign(arguments.seed, numbers, Path(folder), verbose=arguments.verbose or bool(arguments.number))
    print(f"{faults} faults in {len(numbers)} cases of {len(set(KINDS))} kinds, seed {arguments.seed}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
