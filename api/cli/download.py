"""``factor-search download``: what a finished job found, or the stages of a plan that have finished."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from api.cli.arguments import Commands, add_json_argument
from api.cli.environment import add_server_arguments
from api.client import Client, ConflictError, Evaluation, Plan, Plans
from factor_search.errors import OutputError
from factor_search.files.atomic import write_atomically

PARTS = ("search", "validation", "held_out")
LEDGER_KEYS = (
    *("key", "part", "outcome", "rescale_factors", "initial_tokens", "attention_factor"),
    *("losses", "tokens", "losses_at", "seconds"),
)
FILE_OF = {"factors": "factors.json", "huggingface": "config.json"}


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "download",
        help="fetch what a finished job or plan found",
        description="Write the factors of a finished job, or for the last model of a plan. With --out ending in .json "
        "only those; otherwise --out is a folder and gets factors.json, report.json, report.html and "
        "evaluations.jsonl, like that of factor-search run. Of a plan these are the reports of the stages that have "
        "finished, factors.json and, after a readjusting, short_factors.json; its checkpoints stay where the service "
        "keeps them. A file with other content is not overwritten without --force.",
    )
    parser.add_argument("job", metavar="ID", help="id of a job or plan, or the beginning of one")
    parser.add_argument("--out", type=Path, metavar="P", help="default: factors.json, or config.json for huggingface")
    parser.add_argument("--format", choices=list(FILE_OF), default="factors", help="of the factors; default: factors")
    parser.add_argument("--force", action="store_true", help="overwrite other files")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch everything, then write it, and name the files."""
    out = arguments.out or Path(FILE_OF[arguments.format])
    with Client(arguments.url) as client:
        if client.of(arguments.job) is client.plans:
            if arguments.format != "factors":
                raise OutputError("a plan exports its model itself: --format is for jobs")
            files = save_plan(client.plans, client.plans.find(arguments.job), out, force=arguments.force)
        else:
            job_id = client.jobs.find(arguments.job).id
            files = save_results(client, job_id, out, format=arguments.format, force=arguments.force)
    written = [str(file) for file in files]
    print(json.dumps({"files": written}) if arguments.json else "\n".join(written))
    return 0


def save_results(client: Client, job_id: str, out: Path, *, format: str = "factors", force: bool = False) -> list[Path]:
    """Fetch and write what a finished job found; returns the files."""
    factors = json_text(client.jobs.factors(job_id, format))
    files = {out: factors}
    if out.suffix != ".json":
        report = client.jobs.report(job_id)
        plain = report.get("objective", {}).get("kind", "perplexity") == "perplexity"
        parts = PARTS if plain else (*PARTS, "held_out_text")
        files = {
            out / FILE_OF[format]: factors,
            out / "report.json": json_text(report),
            out / "report.html": client.jobs.report_html(job_id).encode(),
            out / "evaluations.jsonl": _lines(client, job_id, parts),
        }
    write_files(files, force=force)
    return list(files)


def save_plan(plans: Plans, plan: Plan, out: Path, *, force: bool) -> list[Path]:
    """Fetch and write what the finished stages of a plan have found; returns the files."""
    for stage in plan.stages:
        if stage.model is not None:
            print(f"{stage.name}: {stage.model}", file=sys.stderr)
    if out.suffix == ".json":
        files = {out: json_text(plans.factors(plan.id))}
    else:
        files = {
            out / "report.json": json_text(plans.report(plan.id)),
            out / "report.html": plans.report_html(plan.id).encode(),
        }
        for name, half in (("factors.json", "long"), ("short_factors.json", "short")):
            with contextlib.suppress(ConflictError):  # there are none yet
                files[out / name] = json_text(plans.factors(plan.id, half))
    write_files(files, force=force)
    return list(files)


def json_text(document: object) -> bytes:
    """A document as ``factor-search run`` writes it."""
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_files(files: dict[Path, bytes], *, force: bool) -> None:
    """Write all or, if one is there with other content, none.

    Raises:
        OutputError: one is there, or cannot be written.
    """
    for file, content in files.items():
        if file.is_dir():
            raise OutputError(f"{file} is a folder: choose another --out")
        if not force and file.exists() and file.read_bytes() != content:
            raise OutputError(f"{file} is there already with other content: choose another --out, or give --force")
    for file, content in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content, required=True)
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror or error}") from None


def _lines(client: Client, job_id: str, parts: Sequence[str]) -> bytes:
    """The ledger of a job: each evaluation once, in the order proposed."""
    known = {
        evaluation.key: _line(evaluation)
        for part in parts
        for evaluation in client.jobs.evaluations(job_id, part=part)
        if evaluation.outcome is not None
    }
    return "".join(f"{line}\n" for line in known.values()).encode()


def _line(evaluation: Evaluation) -> str:
    return json.dumps({name: getattr(evaluation, name) for name in LEDGER_KEYS})
