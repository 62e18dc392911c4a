"""``factor-search pause``, ``resume`` and ``cancel``, of jobs and plans alike."""

import argparse

from api.cli.arguments import Commands, add_json_argument
from api.cli.environment import add_server_arguments
from api.client import Client, Job, Plan

WORDS = {
    "pause": "stop a job or plan so that it can be resumed",
    "resume": "let a paused job or plan go on",
    "cancel": "end a job or plan for good",
}


def add_parser(commands: Commands) -> None:
    """Register the three commands."""
    for word, what in WORDS.items():
        parser = commands.add_parser(word, help=what, description=f"{what[0].upper()}{what[1:]}.")
        parser.add_argument("job", metavar="ID", help="id of a job or plan, or the beginning of one")
        add_server_arguments(parser)
        add_json_argument(parser)
        parser.set_defaults(run=run, action=word)


def run(arguments: argparse.Namespace) -> int:
    """Ask for it and say what state the job or plan is in now."""
    with Client(arguments.url) as client:
        those = client.of(arguments.job)
        steer = {"pause": those.pause, "resume": those.resume, "cancel": those.cancel}[arguments.action]
        what = "plan" if those is client.plans else "job"
        tell(what, steer(those.find(arguments.job).id), as_json=arguments.json)
    return 0


def tell(what: str, now: Job | Plan, *, as_json: bool) -> None:
    """Print what has become of a job or plan."""
    if as_json:
        print(now.model_dump_json())
        return
    pending = f", its coordinator has been asked to {now.request} it" if now.request else ""
    print(f"{what} {now.id} is {now.state}{pending}")
    if now.note:
        print(f"note: {now.note}")
