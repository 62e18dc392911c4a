"""``factor-search submit``: a job or a plan for a server."""

import argparse
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from api.cli.arguments import Commands, add_json_argument
from api.cli.environment import add_server_arguments
from api.cli.watch import EXIT_STATUS, watch
from api.cli.watch_plan import watch_plan
from api.client import Client
from factor_search.errors import SpecError
from factor_search.files.json_documents import read_json
from factor_search.plan.spec import PlanSpec, is_plan, parse_plan
from factor_search.spec import JobSpec, parse_spec


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "submit",
        help="hand a job or a plan to a server",
        description="Submit a job or a plan and print its id. If the server is on this machine, relative paths in the "
        "specification are taken from the current folder.",
        epilog=f"With --watch: {EXIT_STATUS}",
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.json", help="a job or a plan")
    parser.add_argument("--watch", action="store_true", help="stay until it has ended")
    parser.add_argument("--idempotency-key", metavar="K", help="submitting again with the same K makes no second one")
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Submit, and watch if asked."""
    document = read_json(arguments.spec, SpecError)
    plan, key = is_plan(document), arguments.idempotency_key or str(uuid.uuid4())
    spec: JobSpec | PlanSpec = parse_plan(document) if plan else parse_spec(document)
    document = spec.model_dump(mode="json", exclude_unset=True)
    with Client(arguments.url) as client:
        if client.is_local:
            document = with_absolute_paths(document)
        made = (client.plans if plan else client.jobs).submit(document, key)
        print(made.model_dump_json() if arguments.json and not arguments.watch else made.id, flush=True)
        if made.note:
            print(f"note: {made.note}", file=sys.stderr)
        if arguments.watch:
            return (watch_plan if plan else watch)(client, made.id, as_json=arguments.json)
        if not arguments.json:
            print(f"factor-search watch {made.id} shows how it goes", file=sys.stderr)
    return 0


def with_absolute_paths(document: dict[str, Any]) -> dict[str, Any]:
    """The same specification for a server with another current folder; hub ids stay as they are."""
    changed: dict[str, Any] = json.loads(json.dumps(document))
    model, data = changed["model"], changed["data"]
    if model["id"].startswith((".", "/")) or model["id"].count("/") > 1 or Path(model["id"]).exists():
        model["id"] = str(Path(model["id"]).absolute())
    for key in ("files", "held_out_files"):
        if data.get(key):
            data[key] = [str(Path(pattern).absolute()) for pattern in data[key]]
    if changed.get("training_files"):
        changed["training_files"] = [str(Path(pattern).absolute()) for pattern in changed["training_files"]]
    if files := changed.get("warm_start", {}).get("files"):
        changed["warm_start"]["files"] = [str(Path(file).absolute()) for file in files]
    if data.get("dataset") and Path(data["dataset"]).exists():
        data["dataset"] = str(Path(data["dataset"]).absolute())
    return changed
