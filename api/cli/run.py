"""``factor-search run``: a whole search, or a plan of several stages, in this process."""

import argparse
import json
import sys
from pathlib import Path

from api.cli.arguments import Commands, add_json_argument
from api.cli.progress import PlanProgress, Progress
from factor_search.errors import SpecError
from factor_search.files.json_documents import read_json
from factor_search.job import run_job
from factor_search.model.allocator import keep_freed_memory
from factor_search.plan.kinds.export import FOLDER
from factor_search.plan.report import plan_report
from factor_search.plan.report import table as plan_table
from factor_search.plan.run import PlanResult, run_plan
from factor_search.plan.spec import PlanSpec, is_plan, parse_plan
from factor_search.report.document import table
from factor_search.report.results import holds_finished, write_results
from factor_search.spec import JobSpec, parse_spec

INTERRUPTED = 130
WAITING = 3
"""Exit status of a plan that waits for a checkpoint."""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "run",
        help="run a search job, or a plan of several stages, in this process",
        description="Run a search job. DIR gets factors.json, report.json, report.html and evaluations.jsonl; running "
        "the same command again continues from there. Ctrl-C leaves a valid partial result. Of a plan, DIR gets the "
        "plan's report and factors, and a folder for each stage; stages whose part of the plan has changed are run "
        "again, with those that depend on them.",
        epilog="Exit status: 0 finished, 1 failed, 3 waiting for a checkpoint, 130 stopped by Ctrl-C.",
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.json", help="a job or a plan")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--from", dest="start_over_from", metavar="STAGE", help="remove what this stage and later ones have left"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="M", help="hand in the model that a stage waits for (exit status 3)"
    )
    add_json_argument(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    document = read_json(arguments.spec, SpecError)
    if is_plan(document):
        return _run_plan(parse_plan(document), arguments)
    for name in ("start_over_from", "checkpoint"):
        if getattr(arguments, name) is not None:
            option = "from" if name == "start_over_from" else name
            raise SpecError(f"--{option} goes with a plan, and {arguments.spec} is a single search")
    return run(parse_spec(document), arguments.out, arguments.json)


def run(spec: JobSpec, out: Path, as_json: bool) -> int:
    """Run, write the results, print the table (or the report)."""
    keep_freed_memory()
    progress = Progress(spec.budget)
    try:
        result = run_job(spec, out, progress.watcher())
    finally:
        progress.close()
    report = write_results(result, out)
    print(json.dumps(report) if as_json else table(report))
    if result.interrupted:
        holds = "an earlier finished result" if holds_finished(out) else "a partial result"
        print(f"interrupted: {out} holds {holds}; run again to continue", file=sys.stderr)
        return INTERRUPTED
    if not as_json:
        print(f"{out / 'factors.json'}  {out / 'report.html'}")
    return 0


def _run_plan(plan: PlanSpec, arguments: argparse.Namespace) -> int:
    keep_freed_memory()
    progress, out = PlanProgress(), arguments.out
    try:
        result = run_plan(
            plan,
            out,
            progress.watcher(),
            start_over_from=arguments.start_over_from,
            checkpoint=arguments.checkpoint,
        )
    finally:
        progress.close()
    report = plan_report(result.plan, result.works, result.outcomes)
    print(json.dumps(report) if arguments.json else plan_table(report))
    if result.status != "finished":
        return _stopped(result, out)
    if not arguments.json:
        exported = [out / work.stage / FOLDER for work in result.works if work.kind == "export"]
        print(*exported, out / "factors.json", out / "report.html", sep="  ")
    return 0


def _stopped(result: PlanResult, out: Path) -> int:
    stage = result.works[-1].stage
    if result.status == "waiting":
        print(
            f"{stage} waits for a checkpoint tuned with the factors in {out / stage / 'factors.json'}: run again with "
            "--checkpoint",
            file=sys.stderr,
        )
        return WAITING
    print(f"interrupted in {stage}: run again to continue", file=sys.stderr)
    return INTERRUPTED
