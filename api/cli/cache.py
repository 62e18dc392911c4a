"""``factor-search cache``: the size of this machine's cache, and its deletion. All of it can be computed again."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from api.cli.arguments import add_json_argument, age, bytes_text
from factor_search.errors import OutputError
from factor_search.files.atomic import remove_unused
from factor_search.files.cache import cache_root

KINDS = {
    "file-hashes": "hashes of weights",
    "tokens": "token ids of documents",
    "speeds": "measured speeds of models on this machine",
    "models": "models that demo has downloaded",
    "bench": "results of benchmarks",
}
"""Folders in the cache; other files there are not ours, and stay."""


@dataclass(frozen=True)
class Removed:
    """What was removed, or would be."""

    files: int
    bytes: int
    in_use: int
    """Files that stay since a process uses them."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of each action."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    lists = actions.add_parser("list", help="print the size of each kind of data")
    deletes = actions.add_parser("delete", help="delete all data of some kinds")
    deletes.add_argument("kinds", metavar="KIND", nargs="+", choices=KINDS, help=", ".join(KINDS))
    prunes = actions.add_parser("prune", help="delete data that was not used for some time")
    prunes.add_argument("--older-than", type=age, required=True, metavar="AGE", help="such as 30d, 12h or 90m")
    prunes.add_argument("--dry-run", action="store_true", help="only print what would be deleted")
    for action, run in ((lists, show), (deletes, delete), (prunes, prune)):
        add_json_argument(action)
        action.set_defaults(run=run)
    parser.epilog = "The cache is $FACTOR_SEARCH_CACHE, by default ~/.cache/factor-search. Files in use stay."


def show(arguments: argparse.Namespace) -> int:
    """Print number, size and purpose of the files of each kind."""
    root = cache_root()
    found = {kind: [file.stat().st_size for file in _files(root / kind)] for kind in KINDS}
    if arguments.json:
        kinds = {kind: {"files": len(sizes), "bytes": sum(sizes)} for kind, sizes in found.items()}
        print(json.dumps({"folder": str(root), "kinds": kinds}))
        return 0
    print(f"{root}\n{'kind':14}{'files':>9}{'size':>11}  content")
    for kind, sizes in found.items():
        print(f"{kind:14}{len(sizes):>9}{bytes_text(sum(sizes)):>11}  {KINDS[kind]}")
    return 0


def delete(arguments: argparse.Namespace) -> int:
    """Delete all files of some kinds."""
    files = [file for kind in arguments.kinds for file in _files(cache_root() / kind)]
    return _remove(files, as_json=arguments.json)


def prune(arguments: argparse.Namespace) -> int:
    """Delete files that were neither read nor written for some time."""
    before = time.time() - arguments.older_than
    files = [file for kind in KINDS for file in _files(cache_root() / kind) if _used_at(file) < before]
    return _remove(files, as_json=arguments.json, dry_run=arguments.dry_run)


def _used_at(file: Path) -> float:
    status = file.stat()
    return max(status.st_atime, status.st_mtime)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder; links are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if file.is_file() and not file.is_symlink():
                yield file


def _remove(files: list[Path], *, as_json: bool, dry_run: bool = False) -> int:
    count = size = in_use = 0
    for file in files:
        try:
            bytes_here = file.stat().st_size
            if dry_run or remove_unused(file):
                count, size = count + 1, size + bytes_here
            else:
                in_use += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OutputError(f"cannot delete {file}: {error.strerror or error}") from None
    removed = Removed(count, size, in_use)
    if as_json:
        print(json.dumps(asdict(removed)))
    else:
        stays = f"; {in_use} in use stay" if in_use else ""
        print(f"{'would delete' if dry_run else 'deleted'} {count} files, {bytes_text(size)}{stays}")
    return 0
