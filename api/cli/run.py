"""``factor-search run``: a whole search, or a plan of several stages, in this process."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from api.cli.arguments import add_json_argument
from api.cli.specification import add_specification_arguments, print_specification, specification
from factor_search.errors import SpecError
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec

if TYPE_CHECKING:
    from factor_search.plan.run import PlanResult

INTERRUPTED = 130
WAITING = 3
"""Exit status of a plan that waits for a checkpoint."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_specification_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (required)")
    parser.add_argument(
        "--from",
        dest="start_over_from",
        metavar="STAGE",
        help="plans only: discard the results of this stage and later ones first",
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="M", help="plans only: the model that a stage waits for (exit status 3)"
    )
    add_json_argument(parser)
    parser.set_defaults(run=_run)
    parser.epilog = (
        "DIR gets factors.json, report.json, report.html and evaluations.jsonl; a plan also gets a folder for each "
        "stage. Ctrl-C leaves a valid partial result, and the same command continues from it; only stages whose part "
        "of the plan has changed, and those that depend on them, run again. "
        "Exit status: 0 finished, 1 failed, 2 wrong usage, 3 waiting for a checkpoint, 130 stopped by Ctrl-C."
    )


def _run(arguments: argparse.Namespace) -> int:
    spec = specification(arguments)
    if isinstance(spec, JobSpec):
        _refuse_plan_options(arguments)
    if arguments.print_spec:
        print_specification(spec)
        return 0
    if arguments.out is None:
        arguments.usage_error("--out missing: name the folder for the results")
    if isinstance(spec, PlanSpec):
        return _run_plan(spec, arguments)
    return run(spec, arguments.out, arguments.json)


def _refuse_plan_options(arguments: argparse.Namespace) -> None:
    for option, value in (("--from", arguments.start_over_from), ("--checkpoint", arguments.checkpoint)):
        if value is not None:
            raise SpecError(f"{option} goes with a plan, and {arguments.spec or 'this'} is a single search")


def run(spec: JobSpec, out: Path, as_json: bool) -> int:
    """Run a search, write its results, and print the table (or the report)."""
    from api.cli.progress import JobProgress
    from factor_search.job import run_job
    from factor_search.model.allocator import keep_freed_memory
    from factor_search.report.document import table
    from factor_search.report.results import holds_finished, write_results

    keep_freed_memory()
    progress = JobProgress()
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
    from api.cli.progress import PlanProgress
    from factor_search.model.allocator import keep_freed_memory
    from factor_search.plan.kinds.export import FOLDER
    from factor_search.plan.report import plan_report
    from factor_search.plan.report import table as plan_table
    from factor_search.plan.run import run_plan

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


def _stopped(result: "PlanResult", out: Path) -> int:
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
