"""``factor-search pause``, ``resume`` and ``cancel``, for jobs and plans alike."""

import argparse

from api.cli.arguments import add_id_argument, add_json_argument
from api.cli.environment import add_server_arguments
from api.client import Client, Job, Plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_id_argument(parser)
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the request and print the state that the job or plan is in now."""
    with Client(arguments.url) as client:
        resource = client.of(arguments.id)
        change = {"pause": resource.pause, "resume": resource.resume, "cancel": resource.cancel}[arguments.command]
        print_state(change(resource.find(arguments.id).id), as_json=arguments.json)
    return 0


def print_state(item: Job | Plan, *, as_json: bool) -> None:
    """Print the state of a job or plan after a request."""
    if as_json:
        print(item.model_dump_json())
        return
    noun = "plan" if isinstance(item, Plan) else "job"
    pending = f", its coordinator has been asked to {item.request} it" if item.request else ""
    print(f"{noun} {item.id} is {item.state}{pending}")
    if item.note:
        print(f"note: {item.note}")
