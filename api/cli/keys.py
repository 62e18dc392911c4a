"""``factor-search keys``: who may use a server; works on the database itself."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from api.cli.arguments import add_json_argument
from api.cli.environment import add_database_argument
from factor_search.errors import SpecError
from storage.database import Database
from storage.errors import DatabaseError
from storage.keys import SCOPES, ApiKey, KeyStore


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of each action."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    create_parser = actions.add_parser("create", help="create a key and print it, this once")
    create_parser.add_argument("--name", required=True, metavar="N", help="whose key it is")
    create_parser.add_argument(
        "--scope",
        required=True,
        choices=SCOPES,
        help="read: look at jobs; submit: also submit and control them; admin: also change what the dashboard shows",
    )
    list_parser = actions.add_parser("list", help="list all keys, without their secrets")
    revoke_parser = actions.add_parser("revoke", help="refuse a key from now on")
    revoke_parser.add_argument("id", metavar="ID", help="as printed by keys list")
    for action, run in ((create_parser, create), (list_parser, show), (revoke_parser, revoke)):
        add_database_argument(action)
        add_json_argument(action)
        action.set_defaults(run=run)
    parser.epilog = "As soon as a database has a key, every request to its servers needs one."


def create(arguments: argparse.Namespace) -> int:
    """Create a key; the key alone goes to standard output."""
    if not arguments.name.strip() or not arguments.name.isprintable() or len(arguments.name) > 100:
        raise SpecError("--name must be 1 to 100 printable characters")
    with Database(arguments.database) as database:
        key, secret = KeyStore(database).create(arguments.name, [arguments.scope])
    if arguments.json:
        print(json.dumps({**_described(key), "key": secret}))
        return 0
    print(secret)
    print(
        f"key {key.id} ({key.name}, {arguments.scope}): it cannot be shown again; clients read it from "
        "FACTOR_SEARCH_KEY, browsers ask for it as the password",
        file=sys.stderr,
    )
    return 0


def show(arguments: argparse.Namespace) -> int:
    """List keys."""
    _check_there(arguments.database)
    with Database(arguments.database) as database:
        keys = KeyStore(database).list()
    if arguments.json:
        print(json.dumps([_described(key) for key in keys]))
        return 0
    if not keys:
        print("no keys: servers on loopback need none until the first is created")
        return 0
    print(f"{'id':10}{'scope':8}{'created':18}{'revoked':18}name")
    for key in keys:
        created, revoked = (_moment(at) for at in (key.created_at, key.revoked_at))
        print(f"{key.id:10}{','.join(key.scopes):8}{created or '':18}{revoked or '-':18}{key.name}")
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Revoke a key."""
    _check_there(arguments.database)
    with Database(arguments.database) as database:
        keys = KeyStore(database)
        keys.revoke(arguments.id)
        left = sum(key.revoked_at is None for key in keys.list())
    if arguments.json:
        print(json.dumps({"revoked": arguments.id, "keys_left": left}))
    else:
        print(f"key {arguments.id} is refused from now on")
        if not left:
            print("it was the last one: every request is refused until a new key is created", file=sys.stderr)
    return 0


def _check_there(url: str) -> None:
    """Refuse an SQLite file that does not exist: opening it would create it, without keys."""
    file = make_url(url).database if url.startswith("sqlite:") else None
    if file and not Path(file).exists():
        raise DatabaseError(f"there is no database {file}")


def _described(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": _moment(key.created_at),
        "revoked_at": _moment(key.revoked_at),
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")
