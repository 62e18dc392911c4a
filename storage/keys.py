"""API keys: shown once, stored hashed, revoked but never forgotten."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from storage.database import Database
from storage.errors import NotFoundError
from storage.schema import api_keys, now

SCOPES = ("read", "submit", "admin")
"""Each includes those before it."""
PREFIX = "fs"


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is known of a key; not the key."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    revoked_at: float | None

    def allows(self, scope: str) -> bool:
        """Whether the key may do what needs a scope."""
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)


class KeyStore:
    """Keys by their hash."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scopes: Sequence[str]) -> tuple[ApiKey, str]:
        """Make a key: what is known of it, and the key itself, which cannot be shown again."""
        key_id = secrets.token_hex(4)
        secret = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        values = {"id": key_id, "name": name, "sha256": hash_of(secret), "scopes": list(scopes)}
        with self._database.writing() as connection:
            made = connection.execute(insert(api_keys).values(**values, created_at=now()).returning(*_COLUMNS)).one()
        return _key(made), secret

    def find(self, secret: str) -> ApiKey | None:
        """The key that somebody presents, if it is one of ours and not revoked.

        The secret is long and random, so a plain hash is enough and a comparison by the index leaks nothing of use.
        """
        query = select(*_COLUMNS).where(api_keys.c.sha256 == hash_of(secret), api_keys.c.revoked_at.is_(None))
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _key(row)

    def list(self) -> list[ApiKey]:
        """All keys, oldest first."""
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(select(*_COLUMNS).order_by(api_keys.c.created_at))]

    def by_hash(self) -> dict[str, ApiKey]:
        """All keys, revoked ones included, by what is stored of each."""
        with self._database.reading() as connection:
            rows = connection.execute(select(*_COLUMNS, api_keys.c.sha256)).all()
        return {row.sha256: _key(row) for row in rows}

    def revoke(self, key_id: str) -> None:
        """Refuse a key from now on.

        Raises:
            NotFoundError: there is no such key.
        """
        revoked = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        with self._database.writing() as connection:
            if connection.execute(revoked.values(revoked_at=now())).rowcount != 1:
                raise NotFoundError(
                    f"there is no key with the id {key_id} in use: factor-search keys list shows the ids"
                )


_COLUMNS = [api_keys.c[name] for name in ApiKey.__dataclass_fields__]


def _key(row: object) -> ApiKey:
    values = {name: getattr(row, name) for name in ApiKey.__dataclass_fields__}
    return ApiKey(**values | {"scopes": tuple(values["scopes"])})


def hash_of(secret: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()
