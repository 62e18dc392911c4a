"""``factor-search storage``: what a server stores of jobs and plans, with its size; kept, deleted, deleted by age."""

import argparse
import json
from collections.abc import Sequence

from api.cli.arguments import add_id_argument, add_json_argument, age, bytes_text
from api.cli.environment import add_server_arguments
from api.client import Client
from api.schemas import StoredItem

DAY_SECONDS = 86_400


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of each action."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    lists = actions.add_parser("list", help="list jobs and plans with the space that they take, newest first")
    keeps = actions.add_parser("keep", help="keep a job or plan under a name, whatever its age")
    add_id_argument(keeps)
    name = keeps.add_mutually_exclusive_group(required=True)
    name.add_argument("--name", metavar="N", help="why it is kept, in 1 to 100 characters")
    name.add_argument("--no-longer", action="store_true", help="do not keep it any more")
    deletes = actions.add_parser("delete", help="delete jobs or plans that have ended")
    deletes.add_argument("ids", metavar="ID", nargs="+", help="id of a job or plan, or the beginning of one")
    prunes = actions.add_parser("prune", help="delete what ended some time ago and is not kept")
    prunes.add_argument("--older-than", type=age, required=True, metavar="AGE", help="such as 30d, 12h or 90m")
    prunes.add_argument("--dry-run", action="store_true", help="only print what would be deleted")
    for action, run in ((lists, show), (keeps, keep), (deletes, delete), (prunes, prune)):
        add_server_arguments(action)
        add_json_argument(action)
        action.set_defaults(run=run)
    parser.epilog = (
        "A job or plan is deleted with its events, its study on the dashboard, and evaluations and folders that "
        "nothing else refers to. What has not ended is never deleted. serve --keep-days N deletes by age by itself."
    )


def show(arguments: argparse.Namespace) -> int:
    """Print a table of jobs and plans, and the totals below it."""
    with Client(arguments.url) as client:
        report = client.storage.report()
        items = list(client.storage.list())
    if arguments.json:
        shown = report.model_dump(mode="json", exclude={"items", "next"})
        print(json.dumps({**shown, "items": [item.model_dump(mode="json") for item in items]}))
        return 0
    _print_items(items)
    free = f", {bytes_text(report.free_bytes)} of it free" if report.free_bytes else ""
    unused = sum(folder.bytes for folder in report.unused_folders)
    print(
        f"database {bytes_text(report.database_bytes)}{free}, {report.evaluations:,} evaluations; "
        f"work folder {bytes_text(report.folder_bytes)}, {bytes_text(unused)} of it unused"
    )
    return 0


def keep(arguments: argparse.Namespace) -> int:
    """Keep a job or plan, or end that."""
    with Client(arguments.url) as client:
        resource = client.of(arguments.id)
        item = resource.keep(resource.find(arguments.id).id, arguments.name)
    if arguments.json:
        print(json.dumps({"id": item.id, "kept": arguments.name}))
    else:
        print(f"{item.id} is kept as {arguments.name!r}" if arguments.name else f"{item.id} is not kept any more")
    return 0


def delete(arguments: argparse.Namespace) -> int:
    """Delete jobs and plans, one after the other."""
    deleted = []
    with Client(arguments.url) as client:
        found = [(client.of(id), client.of(id).find(id).id) for id in arguments.ids]  # all of them before the first
        for resource, id in found:
            resource.delete(id)
            deleted.append(id)
            if not arguments.json:
                print(f"{id} is deleted")
    if arguments.json:
        print(json.dumps({"deleted": deleted}))
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """Delete by age."""
    with Client(arguments.url) as client:
        pruned = client.storage.prune(arguments.older_than / DAY_SECONDS, dry_run=arguments.dry_run)
    if arguments.json:
        print(pruned.model_dump_json())
        return 0
    if pruned.items:
        _print_items(pruned.items)
    verb = "would delete" if pruned.dry_run else "deleted"
    folders = f"{len(pruned.folders)} folders of {bytes_text(pruned.folder_bytes)}"
    print(f"{verb} {len(pruned.items)} jobs and plans, and {folders}")
    if pruned.more:
        print("the server stopped after some seconds, and more may be due: run the same command again")
    return 0


def _print_items(items: Sequence[StoredItem]) -> None:
    print(f"{'id':27}{'state':11}{'ended':18}{'database':>10}{'folders':>10}  name")
    for item in items:
        ended = "-" if item.ended_at is None else item.ended_at.strftime("%Y-%m-%dT%H:%MZ")
        kept = f" (kept as {item.kept})" if item.kept else ""
        sizes = f"{bytes_text(item.database_bytes):>10}{bytes_text(item.folder_bytes):>10}"
        print(f"{item.id:27}{item.state:11}{ended:18}{sizes}  {item.name}{kept}")
