"""Where a page of jobs or plans ends and the next begins, as opaque text."""

import base64
import binascii
import math
import re

from api.problems import RefusedError

JOB_ID = re.compile(r"[0-9a-f]{24}")
PLAN_ID = re.compile(r"p[0-9a-f]{24}")


def encode_cursor(submitted_at: float, id: str) -> str:
    """The cursor behind a job or plan: pages are newest first, so what comes in meanwhile does not disturb them."""
    return base64.urlsafe_b64encode(f"{submitted_at!r} {id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str, ids: re.Pattern[str] = JOB_ID) -> tuple[float, str]:
    """Inverse of :func:`encode_cursor`.

    Raises:
        RefusedError: the text is none of our cursors.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        at, _, id = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").partition(" ")
        if math.isfinite(float(at)) and ids.fullmatch(id):
            return float(at), id
    except (binascii.Error, ValueError):
        pass
    raise RefusedError(422, "the cursor is not one that this server gave: take it from 'next' of the page before")
