"""``factor-search plans``: the plans of a server."""

import argparse

from api.cli.arguments import Commands
from api.cli.listing import add_list_arguments, age, print_list
from api.client import Client, Plan

STATES = ["queued", "running", "paused", "waiting", "finished", "failed", "cancelled"]


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser("plans", help="list the plans of a server", description="List plans, newest first.")
    add_list_arguments(parser, STATES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    with Client(arguments.url) as client:
        found = list(client.plans.list(state=arguments.state, limit=arguments.limit))
    header = f"{'id':27}{'state':11}{'stages':>7}  {'present':20}{'age':>5}  name"
    print_list(found, "plans", header, _line, arguments)
    return 0


def _line(plan: Plan) -> str:
    done = sum(stage.state == "finished" for stage in plan.stages)
    state = plan.state if plan.request is None else f"{plan.request}..."
    error = f" ({plan.error})" if plan.error else ""
    progress = f"{done}/{len(plan.stages)}"
    return f"{plan.id:27}{state:11}{progress:>7}  {plan.stage or '':20}{age(plan.submitted_at):>5}  {plan.name}{error}"
