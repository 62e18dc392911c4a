"""Waiting for a database that does not answer, so that its restart loses no results."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from storage.errors import DatabaseError

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


def retry_while_away(
    call: Callable[[], T],
    give_up: Callable[[], bool] = lambda: False,
    on_back: Callable[[float], None] = lambda seconds: None,
) -> T:
    """Repeat a call until the database answers.

    Args:
        call: reads or writes; it may take effect twice if the connection breaks during a commit.
        give_up: called after each failure; if true, the failure is raised.
        on_back: receives the seconds that the database was away, if it was.

    Raises:
        DatabaseError: it does not answer, and ``give_up`` is true.
    """
    pause, since = FIRST_PAUSE_SECONDS, time.monotonic()
    while True:
        try:
            result = call()
        except DatabaseError as error:
            if give_up():
                raise
            logger.warning("%s; trying again", error)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            continue
        if pause > FIRST_PAUSE_SECONDS:
            seconds = time.monotonic() - since
            logger.warning("the database answers again after %.1f s", seconds)
            on_back(seconds)
        return result
