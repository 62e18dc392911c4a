"""``factor-search jobs``: what a server has to do and has done."""

import argparse
import json
from datetime import UTC, datetime

from api.cli.arguments import Commands, add_json_argument
from api.cli.environment import add_server_arguments, positive_int
from api.client import Client, Job

STATES = ["queued", "running", "paused", "finished", "failed", "cancelled"]


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser("jobs", help="list the jobs of a server", description="List jobs, newest first.")
    parser.add_argument("--state", choices=STATES, help="only these")
    parser.add_argument("--limit", type=positive_int, default=50, metavar="N", help="at most so many; default: 50")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    with Client(arguments.url) as client:
        found = list(client.jobs(state=arguments.state, limit=arguments.limit))
    if arguments.json:
        print(json.dumps([job.model_dump(mode="json") for job in found]))
        return 0
    if not found:
        print("no jobs" if arguments.state is None else f"no {arguments.state} jobs")
        return 0
    print(f"{'id':26}{'state':11}{'done':>5}{'best':>10}  {'age':>5}  name")
    for job in found:
        print(_line(job))
    for note in dict.fromkeys(job.note for job in found if job.note):
        print(f"note: {note}")
    return 0


def _line(job: Job) -> str:
    done = "" if job.progress is None else f"{job.progress.share:.0%}"
    if job.state == "finished":
        done = "100%"
    best = "" if job.progress is None or job.progress.best_perplexity is None else f"{job.progress.best_perplexity:.4f}"
    state = f"{job.state}" if job.request is None else f"{job.request}..."
    error = f" ({job.error})" if job.error else ""
    return f"{job.id:26}{state:11}{done:>5}{best:>10}  {age(job.submitted_at):>5}  {job.name}{error}"


def age(since: datetime) -> str:
    """How long ago, in one number."""
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
