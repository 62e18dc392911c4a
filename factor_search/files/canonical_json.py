"""Serialises equal values to equal text: sorted keys, no white space, shortest exact floats, no NaN."""

import hashlib
import json
import math
from typing import Any


def canonical_json(value: Any) -> str:
    """Serialise a value so that equal values give equal text and floats survive a round trip bit for bit.

    Raises:
        ValueError: the value contains NaN or an infinity, which JSON cannot express.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Return the SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def finite(value: float) -> float | None:
    """Replace NaN and infinities, which JSON cannot express, by None."""
    return value if math.isfinite(value) else None
