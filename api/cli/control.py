"""``factor-search pause``, ``resume`` and ``cancel``."""

import argparse

from api.cli.arguments import Commands, add_json_argument
from api.cli.environment import add_server_arguments
from api.client import Client

WORDS = {
    "pause": "stop a job so that it can be resumed",
    "resume": "let a paused job go on",
    "cancel": "end a job for good",
}


def add_parser(commands: Commands) -> None:
    """Register the three commands."""
    for word, what in WORDS.items():
        parser = commands.add_parser(word, help=what, description=f"{what[0].upper()}{what[1:]}.")
        parser.add_argument("job", metavar="ID", help="id of a job, or the beginning of one")
        add_server_arguments(parser)
        add_json_argument(parser)
        parser.set_defaults(run=run, action=word)


def run(arguments: argparse.Namespace) -> int:
    """Ask for it and say what state the job is in now."""
    with Client(arguments.url) as client:
        action = {"pause": client.pause, "resume": client.resume, "cancel": client.cancel}[arguments.action]
        job = action(client.find(arguments.job).id)
    if arguments.json:
        print(job.model_dump_json())
    else:
        pending = f", its coordinator has been asked to {job.request} it" if job.request else ""
        print(f"job {job.id} is {job.state}{pending}")
        if job.note:
            print(f"note: {job.note}")
    return 0
