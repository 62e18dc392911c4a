"""``factor-search plans``: the plans of a server."""

import argparse
import json

from api.cli.arguments import Commands, add_json_argument
from api.cli.environment import add_server_arguments, positive_int
from api.cli.jobs import age
from api.client import Client, Plan

STATES = ["queued", "running", "paused", "waiting", "finished", "failed", "cancelled"]


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser("plans", help="list the plans of a server", description="List plans, newest first.")
    parser.add_argument("--state", choices=STATES, help="only these")
    parser.add_argument("--limit", type=positive_int, default=50, metavar="N", help="at most so many; default: 50")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    with Client(arguments.url) as client:
        found = list(client.plans.list(state=arguments.state, limit=arguments.limit))
    if arguments.json:
        print(json.dumps([plan.model_dump(mode="json") for plan in found]))
        return 0
    if not found:
        print("no plans" if arguments.state is None else f"no {arguments.state} plans")
        return 0
    print(f"{'id':27}{'state':11}{'stages':>7}  {'present':20}{'age':>5}  name")
    for plan in found:
        print(_line(plan))
    for note in dict.fromkeys(plan.note for plan in found if plan.note):
        print(f"note: {note}")
    return 0


def _line(plan: Plan) -> str:
    done = sum(stage.state == "finished" for stage in plan.stages)
    state = plan.state if plan.request is None else f"{plan.request}..."
    error = f" ({plan.error})" if plan.error else ""
    progress = f"{done}/{len(plan.stages)}"
    return f"{plan.id:27}{state:11}{progress:>7}  {plan.stage or '':20}{age(plan.submitted_at):>5}  {plan.name}{error}"
