"""``factor-search retry``: a plan that has failed or was cancelled starts again."""

import argparse

from api.cli.arguments import add_json_argument
from api.cli.control import print_state
from api.cli.environment import add_server_arguments
from api.client import Client


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("plan", metavar="ID", help="id of a plan, or the beginning of one")
    parser.add_argument(
        "--from", dest="stage", metavar="STAGE", help="stage to start from; default: the first that has not finished"
    )
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.epilog = (
        "Earlier stages keep their results, no stage runs again whose result is still there, and fine-tuning continues "
        "from its last checkpoint."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start the plan again and print its state."""
    with Client(arguments.url) as client:
        plan = client.plans.retry(client.plans.find(arguments.plan).id, arguments.stage)
    print_state(plan, as_json=arguments.json)
    return 0
