"""``factor-search supply-checkpoint``: the checkpoint that a plan waits for."""

import argparse
from pathlib import Path

from api.cli.arguments import add_json_argument
from api.cli.control import print_state
from api.cli.environment import add_server_arguments
from api.client import Client


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("plan", metavar="ID", help="id of a plan, or the beginning of one")
    parser.add_argument("model", metavar="FOLDER", help="the fine-tuned checkpoint, as the server sees it")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.epilog = (
        "A checkpoint of another architecture, shape or vocabulary is refused. If the server is on this machine, a "
        "relative path is resolved against the current folder."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Supply the checkpoint and print the plan's state."""
    with Client(arguments.url) as client:
        model = str(Path(arguments.model).absolute()) if client.is_local else arguments.model
        plan = client.plans.supply_checkpoint(client.plans.find(arguments.plan).id, model)
    print_state(plan, as_json=arguments.json)
    return 0
