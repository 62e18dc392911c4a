"""``factor-search submit``: a job or a plan for a server."""

import argparse
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from api.cli.arguments import IGNORE_MEMORY, add_json_argument
from api.cli.environment import add_server_arguments
from api.cli.specification import add_specification_arguments, print_specification, specification
from api.cli.watch import watch
from api.client import Client
from factor_search.errors import FactorSearchError, one_line
from factor_search.plan.spec import PlanSpec
from factor_search.search.estimate_text import summary


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_specification_arguments(parser)
    parser.add_argument("--watch", action="store_true", help="follow it until it ends")
    parser.add_argument(
        "--idempotency-key", metavar="K", help="submitting again with the same K does not create a second one"
    )
    parser.add_argument("--ignore-memory", action="store_true", help=IGNORE_MEMORY)
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.epilog = (
        "Prints the id. If the server is on this machine, relative paths are resolved against the current folder. With "
        "--watch, the exit status is that of factor-search watch."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Submit, and follow it if asked to."""
    spec, key = specification(arguments), arguments.idempotency_key or str(uuid.uuid4())
    if arguments.print_spec:
        print_specification(spec)
        return 0
    document = spec.model_dump(mode="json", exclude_unset=True)
    with Client(arguments.url) as client:
        if client.is_local:
            document = with_absolute_paths(document)
        resource = client.plans if isinstance(spec, PlanSpec) else client.jobs
        item = resource.submit(document, key, ignore_memory=arguments.ignore_memory)
        print(item.model_dump_json() if arguments.json and not arguments.watch else item.id, flush=True)
        if item.note:
            print(f"note: {item.note}", file=sys.stderr)
        if not arguments.json:
            print(_estimate(client, document), file=sys.stderr, flush=True)
        if arguments.watch:
            return watch(client, item.id, as_json=arguments.json)
        if not arguments.json:
            print(f"to follow it: factor-search watch {item.id}", file=sys.stderr)
    return 0


def _estimate(client: Client, document: dict[str, Any]) -> str:
    """The server's estimate in one line, or why there is none: the job is queued in any case."""
    try:
        return summary(client.estimate(document).as_json())
    except FactorSearchError as error:
        return f"estimate: none ({one_line(error)})"


def with_absolute_paths(document: dict[str, Any]) -> dict[str, Any]:
    """The same specification for a server with another current folder; hub ids are left unchanged."""
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
