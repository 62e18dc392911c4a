"""``factor-search run``: a whole search in this process."""

import json
import sys
from pathlib import Path

from api.cli.arguments import Commands, add_json_argument
from api.cli.progress import Progress
from factor_search.allocator import keep_freed_memory
from factor_search.job import run_job
from factor_search.report import holds_finished, table, write_results
from factor_search.spec import JobSpec, read_spec

INTERRUPTED = 130


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "run",
        help="run a search job in this process",
        description="Run a search job. DIR gets factors.json, report.json, report.html and evaluations.jsonl; running "
        "the same command again continues from there. Ctrl-C leaves a valid partial result.",
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_json_argument(parser)
    parser.set_defaults(run=lambda arguments: run(read_spec(arguments.spec), arguments.out, arguments.json))


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
