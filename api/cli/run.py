"""``factor-search run``: a whole search, or a plan of several stages, in this process."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.cli.arguments import IGNORE_MEMORY, add_json_argument
from api.cli.specification import add_specification_arguments, print_specification, specification
from factor_search.errors import FactorSearchError, SpecError, TooLargeError
from factor_search.plan.spec import PlanSpec
from factor_search.report.tracing import set_up_tracing
from factor_search.spec import JobSpec
from factor_search.visible import visible

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
    parser.add_argument("--ignore-memory", action="store_true", help=IGNORE_MEMORY)
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
    if not arguments.ignore_memory:
        check_memory(spec)
    set_up_tracing("factor-search")
    if isinstance(spec, PlanSpec):
        return _run_plan(spec, arguments)
    return run(spec, arguments.out, arguments.json)


def check_memory(spec: JobSpec | PlanSpec) -> None:
    """Refuse what needs far more memory than there is here.

    Raises:
        TooLargeError: says what it needs, what there is, and the largest length that would fit.
    """
    from factor_search.model.memory import available_bytes
    from factor_search.model.speed import device_of
    from factor_search.plan.estimate import memory_refusal

    available = available_bytes(str(device_of(spec.model)))
    reason = None if available is None else memory_refusal(spec, available, "this machine")
    if reason is not None:
        raise TooLargeError(f"{reason}; --ignore-memory runs it nevertheless")


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
    from factor_search.report.trackers.search import tracked_search

    keep_freed_memory()
    progress = JobProgress()
    with tracked_search(spec, out, progress.watcher()) as search:
        try:
            result = run_job(spec, out, search.watcher)
        finally:
            progress.close()
        report = write_results(result, out)
        search.conclude(result, report)
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
    estimate = _estimate(plan)
    try:
        result = run_plan(
            plan,
            out,
            progress.watcher(),
            start_over_from=arguments.start_over_from,
            checkpoint=arguments.checkpoint,
            estimate=estimate,
        )
    finally:
        progress.close()
    report = plan_report(result.plan, result.works, result.outcomes, estimate)
    print(json.dumps(report) if arguments.json else plan_table(report))
    if result.status != "finished":
        return _stopped(result, out)
    if not arguments.json:
        exported = [out / work.stage / FOLDER for work in result.works if work.kind == "export"]
        print(*exported, out / "factors.json", out / "report.html", sep="  ")
    return 0


def _estimate(plan: PlanSpec) -> dict[str, Any] | None:
    """Print the estimate of a plan in one line; None if none can be made, as the plan itself will say."""
    from api.cli.estimate import estimated
    from factor_search.search.estimate_text import summary

    try:
        estimate = estimated(plan)
    except FactorSearchError:
        return None
    print(visible(summary(estimate)), file=sys.stderr, flush=True)
    return estimate


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
