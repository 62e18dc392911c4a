"""One byte string for one value: sorted keys, no white space, shortest exact floats, no NaN."""

import hashlib
import json
import math
from typing import Any


def canonical_json(value: Any) -> str:
    """Serialise so that equal values give equal text, and floats survive a round trip bit for bit.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON cannot express.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def finite(value: float) -> float | None:
    """None for a number that JSON cannot express."""
    return value if math.isfinite(value) else None
