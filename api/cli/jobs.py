"""``factor-search jobs``: what a server has to do and has done."""

import argparse

from api.cli.arguments import Commands
from api.cli.listing import add_list_arguments, age, print_list
from api.client import Client, Job

STATES = ["queued", "running", "paused", "finished", "failed", "cancelled"]


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser("jobs", help="list the jobs of a server", description="List jobs, newest first.")
    add_list_arguments(parser, STATES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    with Client(arguments.url) as client:
        found = list(client.jobs.list(state=arguments.state, limit=arguments.limit))
    print_list(found, "jobs", f"{'id':26}{'state':11}{'done':>5}{'best':>10}  {'age':>5}  name", _line, arguments)
    return 0


def _line(job: Job) -> str:
    done = "" if job.progress is None else f"{job.progress.share:.0%}"
    if job.state == "finished":
        done = "100%"
    best = "" if job.progress is None or job.progress.best_perplexity is None else f"{job.progress.best_perplexity:.4f}"
    state = f"{job.state}" if job.request is None else f"{job.request}..."
    error = f" ({job.error})" if job.error else ""
    return f"{job.id:26}{state:11}{done:>5}{best:>10}  {age(job.submitted_at):>5}  {job.name}{error}"
