"""Tells early that the Hugging Face hub does not answer: its clients try again, silently, for more than a minute."""

import contextlib
import logging
import threading
from collections.abc import Iterator

SILENT_SECONDS = 5.0
_told: set[str] = set()
"""Names that were asked for in vain in this process."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def asking_hub(name: str) -> Iterator[None]:
    """A context in which something small is asked of the hub; if it takes long, a line says so, once for each name."""
    timer = threading.Timer(SILENT_SECONDS, _tell, [name])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell(name: str) -> None:
    from huggingface_hub import constants

    if name not in _told:
        _told.add(name)
        logger.warning(
            "the hub (%s) has not answered for %g s and is tried again, for %s: without a network give a local folder, "
            "or set HF_HUB_OFFLINE=1 to use what was downloaded before",
            constants.ENDPOINT,
            SILENT_SECONDS,
            name,
        )
