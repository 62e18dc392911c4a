"""``factor-search retry`` and ``hand-in``: what only plans need."""

import argparse
from pathlib import Path

from api.cli.arguments import Commands, add_json_argument
from api.cli.control import tell
from api.cli.environment import add_server_arguments
from api.client import Client


def add_parser(commands: Commands) -> None:
    """Register the two commands."""
    hand_in = commands.add_parser(
        "hand-in",
        help="give a plan the checkpoint that it waits for",
        description="Give a plan that waits for it the checkpoint that you tuned. One of another architecture, shape "
        "or vocabulary is refused. If the server is on this machine, a relative path is taken from the current folder.",
    )
    retry = commands.add_parser(
        "retry",
        help="try a plan again that has failed or was cancelled",
        description="Begin a plan that has ended again. The stages before keep their results, and none is done again "
        "whose result is known and still there; a fine-tuning goes on from its last checkpoint.",
    )
    for parser in (hand_in, retry):
        parser.add_argument("plan", metavar="ID", help="id of a plan, or the beginning of one")
    hand_in.add_argument("model", metavar="FOLDER", help="the checkpoint, as the server sees it")
    retry.add_argument("--from", dest="stage", metavar="STAGE", help="default: the first that has not ended well")
    for parser, run in ((hand_in, _hand_in), (retry, _retry)):
        add_server_arguments(parser)
        add_json_argument(parser)
        parser.set_defaults(run=run)


def _hand_in(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        model = str(Path(arguments.model).absolute()) if client.is_local else arguments.model
        plan = client.plans.supply_checkpoint(client.plans.find(arguments.plan).id, model)
    tell("plan", plan, as_json=arguments.json)
    return 0


def _retry(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        plan = client.plans.retry(client.plans.find(arguments.plan).id, arguments.stage)
    tell("plan", plan, as_json=arguments.json)
    return 0
