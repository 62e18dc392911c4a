"""Waiting for a database that is away: results are not thrown away because of a restart."""

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
    """Call until the database answers.

    Args:
        call: what reads or writes; it may be carried out twice if the connection broke in a commit.
        give_up: asked after each failure; if true, the failure is raised.
        on_back: hears how many seconds the database was away, if it was.

    Raises:
        DatabaseError: it does not answer, and ``give_up`` says not to wait for it.
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
            logger.warning("the database is back after %.1f s", seconds)
            on_back(seconds)
        return result
