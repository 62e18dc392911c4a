"""The prepared folder and server in which the commands and snippets of the documentation run."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from api.estimate_schemas import Estimate
from bench.gguf_writer import write_model
from factor_search.factors_file import parse_factors
from factor_search.plan.spec import is_plan, parse_plan
from factor_search.spec import parse_spec
from tests.conftest import save_checkpoint
from tests.families import tiny_model
from tests.rest_service import app_on, serving
from tests.service import Service
from workers.model_worker import ModelWorker

ROOT = Path(__file__).parents[1]
CANDIDATES = 4
DOCUMENTS = {"search_documents": 2, "validation_documents": 1, "held_out_documents": 2}
DATA = {"files": ["books/*.txt"]} | DOCUMENTS
SMALL = {
    # tokens; the model in the prepared folder has an original length of 64
    "1024": "192",
    "4096": "220",
    "8192": "224",
    "16384": "240",
    "32768": "256",
    "65536": "700",
    "131072": "288",
    "1048576": "384",
    "--candidates 40": f"--candidates {CANDIDATES}",
    "--candidates 60": f"--candidates {CANDIDATES + 1}",
    "--candidates 100": f"--candidates {CANDIDATES}",
    "n_trials=200": "n_trials=20",
    '"budget": 10': f'"budget": {CANDIDATES}',
    'data="books/*.txt",': f"data={DATA}, budget={CANDIDATES},",
    '"data": "books/*.txt"': f'"data": {json.dumps(DATA)}',
    '"target_length": 256}': f'"target_length": 256, "budget": {CANDIDATES}}}',
}
"""What the documentation says, and what takes its place in a test, in this order. Nothing else is replaced but ids and
the server's address. Names such as path/or/hub-id and books/*.txt exist in the prepared folder, where the shipped
checkpoint is the small one too."""


def small(text: str) -> str:
    """The text with short lengths and small budgets."""
    for shown, used in SMALL.items():
        pattern = rf"\b{shown}\b" if shown.isdigit() else re.escape(shown)
        text = re.sub(pattern, used, text)
    return text


def prepare(folder: Path) -> None:
    """Everything that the documentation names: a checkpoint, one tuned from it, documents to search and to train on."""
    model = tiny_model("llama", vocab_size=257)
    for name in ("path/or/hub-id", "tuned"):
        save_checkpoint(model, folder / name)
    write_model(folder / "model.gguf", model)
    (folder / "models").mkdir()
    (folder / "books").mkdir()
    for number in range(24):
        text = f"Book {number}. " + f"word{number} and more; " * (30 + number)
        (folder / "books" / f"{number:02}.txt").write_text(text)
    (folder / "papers").mkdir()
    papers = [{"text": f"Paper {number}. " + f"claim{number} and proof; " * 40} for number in range(6)]
    (folder / "papers" / "all.jsonl").write_text("".join(f"{json.dumps(paper)}\n" for paper in papers))
    (folder / "factor_search" / "testbed").mkdir(parents=True)
    (folder / "factor_search" / "testbed" / "checkpoint").symlink_to(folder / "path/or/hub-id")
    (folder / "factor_search" / "sources").symlink_to(ROOT / "factor_search" / "search" / "strategies")


def write_short_factors(long: Path, short: Path) -> None:
    """The other half of a pair, as a readjustment would find it."""
    document = json.loads(long.read_text())
    changes = {"target_length": document["model"]["original_length"], "scale": 1.0}
    changes["rescale_factors"] = [1.0] * len(document["rescale_factors"])
    del document["sha256"]
    parse_factors(document | changes).write(short)


def checked(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON block, validated as what it is; a job or plan with small budgets.

    A recipe is replaced by its stages, since those of a recipe have no budgets to make small.
    """
    if "schema" in document:
        parse_factors(document)
        return document
    if "evaluation" in document:
        Estimate.model_validate(document)
        return document
    if not is_plan(document):
        data = parse_spec(document).data.model_dump(mode="json", exclude_unset=True)
        return document | {"data": data | DOCUMENTS, "budget": CANDIDATES}
    plan = parse_plan(document).expanded().model_dump(mode="json")
    plan["data"] |= DOCUMENTS
    for stage in plan["stages"]:
        if "budget" in stage:
            stage["budget"] = {"candidates": CANDIDATES}
        if stage["kind"] == "finetune":
            stage["settings"] |= {"steps": 2, "warmup_steps": 1}
        if stage["kind"] == "evaluate":
            stage |= {"passkey": {"lengths": [256], "depths": 2}, "harness": []}
    parse_plan(plan)
    return plan


class DocumentedService:
    """A server on a folder, and its coordinator, which starts as late as possible: what is queued can be paused."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self._service = Service(f"sqlite:///{folder / 'jobs.db'}", work_folder=folder / "made")

    def drive(self) -> None:
        """Start the coordinator, if it does not run."""
        if not self._service.running:
            self._service.start(workers=1, make=lambda: ModelWorker(threads=1))  # type: ignore[arg-type,return-value]

    def close(self) -> None:
        self._service.stop()
        self._service.database.close()


@contextmanager
def documented_service(folder: Path) -> Iterator[DocumentedService]:
    """A server that may read the prepared folder."""
    with ExitStack() as stack:
        url = stack.enter_context(serving(app_on(folder)))
        service = DocumentedService(folder, url)
        stack.callback(service.close)
        yield service


def copied(prepared: Path, folder: Path) -> Path:
    """A copy of the prepared folder for one page, which no other page has written to."""
    shutil.copytree(prepared, folder, symlinks=True, dirs_exist_ok=True)
    return folder
