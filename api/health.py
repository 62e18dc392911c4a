"""Whether this server can serve, kept up to date by a thread of its own, so that nobody who asks waits."""

import logging
import threading
import time

from api.problems import RETRY_AFTER_SECONDS, RefusedError
from api.settings import Settings
from factor_search.errors import one_line
from storage.database import Database
from storage.health import Condition, Probe

FIRST_LOOK_SECONDS = 5.0
"""The server starts without a first look if that takes longer."""
logger = logging.getLogger(__name__)


class HealthWatch:
    """Looks at the database again and again; a context manager."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._condition = Condition("the database has not been looked at yet", "", 0)
        self._looked_at = time.monotonic()
        self._looked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def __enter__(self) -> "HealthWatch":
        self._thread.start()
        self._looked.wait(FIRST_LOOK_SECONDS)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(FIRST_LOOK_SECONDS)  # a daemon: a database that does not answer cannot hold up the end

    @property
    def age_seconds(self) -> float:
        """Since the last look ended."""
        return time.monotonic() - self._looked_at

    @property
    def coordinators(self) -> int:
        """That reported lately."""
        return self._condition.coordinators

    @property
    def fault(self) -> str | None:
        """Why the server cannot serve, for anybody to read; None if it can."""
        if self._condition.fault is not None:
            return self._condition.fault
        age = self.age_seconds
        if age > self._settings.oldest_look_seconds:
            return f"the database has not answered for {age:.0f} seconds"
        return None

    def check(self) -> None:
        """Refuse what could be lost.

        Raises:
            RefusedError: the server cannot serve now.
        """
        if (fault := self.fault) is not None:
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise RefusedError(503, f"{fault}: nothing is accepted until that has changed", headers=headers)

    @staticmethod
    def _found(probe: Probe) -> Condition:
        try:
            return probe.look()
        except Exception as error:  # whatever it is: a watch that ends tells nothing any more
            return Condition("the database cannot be looked at", f"{type(error).__name__}: {one_line(error)}", 0)

    def _run(self) -> None:
        probe = Probe(self._database, self._settings.coordinator_silent_seconds)
        try:
            while not self._stop.is_set():
                found = self._found(probe)
                if found.fault != self._condition.fault:
                    _log(found)
                self._condition, self._looked_at = found, time.monotonic()
                self._looked.set()
                self._stop.wait(self._settings.look_seconds)
        finally:
            probe.close()


def _log(found: Condition) -> None:
    if found.fault is None:
        logger.info("the database can be used")
    else:
        logger.error("not ready: %s (%s)", found.fault, found.detail)
