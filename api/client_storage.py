"""What a server stores, for the client."""

from collections.abc import Iterator

from api.connection import Connection, parsed
from api.schemas import Pruned, StorageReport, StoredItem

PATH = "/v1/storage"


class Storage:
    """``client.storage`` of a :class:`api.client.Client`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def report(self) -> StorageReport:
        """The sizes of database and work folder, and of the newest jobs and plans."""
        return parsed(StorageReport, self._connection.get(PATH))

    def list(self) -> Iterator[StoredItem]:
        """All jobs and plans with their sizes, newest first."""
        for page in self._connection.pages(PATH, StorageReport, lambda page: page.next, state=None, limit=None):
            yield from page.items

    def prune(self, older_than_days: float, *, dry_run: bool = False) -> Pruned:
        """Delete what ended longer ago and is not kept; or only tell what that would be. Needs the scope admin.

        If the answer has ``more``, the server stopped after some seconds: ask again.
        """
        wanted = {"older_than_days": older_than_days, "dry_run": dry_run}
        return parsed(Pruned, self._connection.request("POST", f"{PATH}/prune", json=wanted))
