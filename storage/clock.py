"""Notices that the database's clock was set, by comparing it with this process's monotonic clock."""

import time
from collections.abc import Callable

EVEN_SECONDS = 1.0
"""Between two looks the clocks of two machines drift apart by less."""


class Clock:
    """What a process has seen of the database's clock.

    After a step of the clock, leases and reports look expired, or far too long, until their owners have renewed them.
    Whoever judges them waits so long.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._ahead: float | None = None
        """Of the database's clock before the monotonic one, seconds."""
        self._stepped_at = -float("inf")

    def saw(self, database_seconds: float) -> None:
        """Compare the database's clock, just read, with the last time."""
        here = self._monotonic()
        ahead, before = database_seconds - here, self._ahead
        if before is not None and abs(ahead - before) > EVEN_SECONDS:
            self._stepped_at = here
        self._ahead = ahead

    def stepped_within(self, seconds: float) -> bool:
        """Whether a step was noticed less than so many seconds ago."""
        return self._monotonic() - self._stepped_at < seconds
