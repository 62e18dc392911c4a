"""Where Optuna's dashboard shows a study, found without loading Optuna."""

import threading

from sqlalchemy import MetaData, Table, select
from sqlalchemy.exc import NoSuchTableError

from storage.database import Database
from storage.errors import DatabaseError

MOST_KNOWN = 10_000


class StudyPages:
    """Paths of studies on the dashboard, for several threads."""

    def __init__(self, optuna_url: str | None) -> None:
        """Prepare; None knows no study."""
        self._url = optuna_url
        self.served = optuna_url is not None
        """Whether there is a dashboard."""
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._table: Table | None = None
        self._known: dict[str, str] = {}

    def path(self, name: str) -> str | None:
        """Path of a study's page by its name; None where there is none, or the tables cannot be reached."""
        if self._url is None:
            return None
        with self._lock:
            if name not in self._known and (found := self._find(self._url, name)) is not None:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[name] = f"/dashboard/studies/{found}"
            return self._known.get(name)

    def close(self) -> None:
        """Give the connections back."""
        if self._database is not None:
            self._database.close()

    def _find(self, url: str, name: str) -> int | None:
        try:
            if self._database is None:
                self._database = Database(url, migrate=False)
            if self._database.file is not None and not self._database.file.exists():
                return None  # connecting would make an empty one
            with self._database.reading() as connection:
                if self._table is None:
                    self._table = Table("studies", MetaData(), autoload_with=connection)
                studies = self._table.c
                found: int | None = connection.scalar(select(studies.study_id).where(studies.study_name == name))
                return found
        except (DatabaseError, NoSuchTableError):
            return None
