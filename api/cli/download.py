"""``factor-search download``: the results of a finished job, or of the finished stages of a plan."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from api.cli.arguments import add_id_argument, add_json_argument
from api.cli.environment import add_server_arguments
from api.client import Client, ConflictError, Evaluation, Job, Plan
from factor_search.errors import OutputError
from factor_search.export.registry import ENGINES
from factor_search.files.atomic import cannot_write, write_atomically
from factor_search.measure.request import MEASURED

LEDGER_KEYS = (
    *("key", "part", "outcome", "rescale_factors", "initial_tokens", "attention_factor"),
    *("losses", "tokens", "losses_at", "seconds"),
)
FILE_OF = {"factors": "factors.json"} | {
    name: engine.document_name for name, engine in ENGINES.items() if engine.document_name is not None
}
"""Formats that are one JSON document; the others need the weights, and are exported where the model is."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_id_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="P",
        help="a folder, or a .json file for the factors alone; default: the name that the format gives its JSON",
    )
    parser.add_argument(
        "--format", choices=list(FILE_OF), default="factors", help="format of the factors; default: factors"
    )
    parser.add_argument(
        "--nearest",
        action="store_true",
        help="with --format: the nearest that the format can express, if it cannot express the factors themselves",
    )
    parser.add_argument("--force", action="store_true", help="overwrite files with other content")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.epilog = (
        "A folder gets factors.json, report.json, report.html and evaluations.jsonl, as from factor-search run. From a "
        "plan it gets the reports of its finished stages, factors.json and, after a readjustment, short_factors.json; "
        "checkpoints stay where the service keeps them."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch everything, then write it, and print the files' names."""
    with Client(arguments.url) as client:
        item = client.of(arguments.id).find(arguments.id)
        out = arguments.out or Path(FILE_OF[arguments.format])
        files = save(client, item, out, format=arguments.format, nearest=arguments.nearest, force=arguments.force)
    written = [str(file) for file in files]
    print(json.dumps({"files": written}) if arguments.json else "\n".join(written))
    return 0


def save(
    client: Client, item: Job | Plan, out: Path, *, format: str = "factors", nearest: bool = False, force: bool = False
) -> list[Path]:
    """Fetch and write the results of a finished job, or of the finished stages of a plan; returns the files.

    Raises:
        OutputError: a plan's factors are asked for in an engine's format, or a file cannot be written.
    """
    if isinstance(item, Plan):
        if format != "factors":
            raise OutputError("--format is for jobs: a plan exports its model in a stage of its own")
        files = _of_plan(client, item, out)
    else:
        files = _of_job(client, item, out, format, nearest)
    write_files(files, force=force)
    return list(files)


def _of_job(client: Client, job: Job, out: Path, format: str, nearest: bool) -> dict[Path, bytes]:
    factors = json_text(client.jobs.factors(job.id, format, nearest=nearest))
    if out.suffix == ".json":
        return {out: factors}
    report = client.jobs.report(job.id)
    return {
        out / FILE_OF[format]: factors,
        out / "report.json": json_text(report),
        out / "report.html": client.jobs.report_html(job.id).encode(),
        out / "evaluations.jsonl": _lines(client, job.id),
    }


def _of_plan(client: Client, plan: Plan, out: Path) -> dict[Path, bytes]:
    for stage in plan.stages:
        if stage.model is not None:
            print(f"{stage.name}: {stage.model}", file=sys.stderr)
    if out.suffix == ".json":
        return {out: json_text(client.plans.factors(plan.id))}
    files = {
        out / "report.json": json_text(client.plans.report(plan.id)),
        out / "report.html": client.plans.report_html(plan.id).encode(),
    }
    for name, half in (("factors.json", "long"), ("short_factors.json", "short")):
        with contextlib.suppress(ConflictError):  # there are none yet
            files[out / name] = json_text(client.plans.factors(plan.id, half))
    return files


def json_text(document: object) -> bytes:
    """A document as ``factor-search run`` writes it."""
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_files(files: dict[Path, bytes], *, force: bool) -> None:
    """Write all files, or none if one of them exists with other content.

    Raises:
        OutputError: one exists with other content, or cannot be written.
    """
    for file, content in files.items():
        if file.is_dir():
            raise OutputError(f"{file} is a folder: choose another --out")
        if not force and file.exists() and file.read_bytes() != content:
            raise OutputError(f"{file} exists with other content: choose another --out, or give --force")
    for file, content in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content, required=True)
        except OSError as error:
            raise cannot_write(file, error) from None


def _lines(client: Client, job_id: str) -> bytes:
    """The evaluations of a job, each once, in the order proposed."""
    known = {
        evaluation.key: _line(evaluation)
        for part in MEASURED
        for evaluation in client.jobs.evaluations(job_id, part=part)
        if evaluation.outcome is not None
    }
    return "".join(f"{line}\n" for line in known.values()).encode()


def _line(evaluation: Evaluation) -> str:
    return json.dumps({name: getattr(evaluation, name) for name in LEDGER_KEYS})
