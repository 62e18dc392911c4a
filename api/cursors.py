"""Where a page of jobs ends and the next begins, as opaque text."""

import base64
import binascii
import math
import re

from api.problems import RefusedError

JOB_ID = re.compile(r"[0-9a-f]{24}")


def encode_cursor(submitted_at: float, job_id: str) -> str:
    """The cursor behind a job: pages are newest first, so jobs that come in meanwhile do not disturb them."""
    return base64.urlsafe_b64encode(f"{submitted_at!r} {job_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[float, str]:
    """Inverse of :func:`encode_cursor`.

    Raises:
        RefusedError: the text is none of our cursors.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        at, _, job_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").partition(" ")
        if math.isfinite(float(at)) and JOB_ID.fullmatch(job_id):
            return float(at), job_id
    except (binascii.Error, ValueError):
        pass
    raise RefusedError(422, "the cursor is not one that this server gave: take it from 'next' of the page before")
