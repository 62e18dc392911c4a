"""``factor-search jobs`` and ``plans``: what a server has, as a table or as JSON."""

import argparse
import json
from datetime import UTC, datetime

from api.cli.arguments import add_json_argument
from api.cli.environment import add_server_arguments, positive_int
from api.client import Client, Job, Plan
from factor_search.visible import visible
from storage.states import JobState, PlanState

STATES = {"jobs": [str(state) for state in JobState], "plans": [str(state) for state in PlanState]}
HEADERS = {
    "jobs": f"{'id':26}{'state':11}{'done':>5}{'best':>10}  {'age':>5}  name",
    "plans": f"{'id':27}{'state':11}{'stages':>7}  {'present':20}{'age':>5}  name",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; ``command`` among the defaults says which of the two it is."""
    command = parser.get_default("command")
    parser.add_argument("--state", choices=STATES[command], help="list only those in this state")
    parser.add_argument("--limit", type=positive_int, default=50, metavar="N", help="list at most N; default: 50")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print them, and below a table each note once that any of them has."""
    what = arguments.command
    with Client(arguments.url) as client:
        resource = client.plans if what == "plans" else client.jobs
        found: list[Job | Plan] = list(resource.list(state=arguments.state, limit=arguments.limit))
    if arguments.json:
        print(json.dumps([item.model_dump(mode="json") for item in found]))
        return 0
    if not found:
        print(f"no {what}" if arguments.state is None else f"no {arguments.state} {what}")
        return 0
    print(HEADERS[what])
    for item in found:
        print(_plan_line(item) if isinstance(item, Plan) else _job_line(item))
    for note in dict.fromkeys(item.note for item in found if item.note):
        print(f"note: {note}")
    return 0


def _job_line(job: Job) -> str:
    done = "" if job.progress is None else f"{job.progress.share:.0%}"
    if job.state == JobState.FINISHED:
        done = "100%"
    best = "" if job.progress is None or job.progress.best_perplexity is None else f"{job.progress.best_perplexity:.4f}"
    return f"{job.id:26}{_state(job):11}{done:>5}{best:>10}  {_age(job.submitted_at):>5}  {_name(job)}"


def _plan_line(plan: Plan) -> str:
    done = sum(stage.state == "finished" for stage in plan.stages)
    progress = f"{done}/{len(plan.stages)}"
    age = _age(plan.submitted_at)
    return f"{plan.id:27}{_state(plan):11}{progress:>7}  {plan.stage or '':20}{age:>5}  {_name(plan)}"


def _state(item: Job | Plan) -> str:
    return str(item.state) if item.request is None else f"{item.request}..."


def _name(item: Job | Plan) -> str:
    return visible(f"{item.name} ({item.error})" if item.error else item.name)


def _age(since: datetime) -> str:
    """Time since then as one number with a unit."""
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
