"""Estimates as text for people."""

from typing import Any


def refusal(estimate: dict[str, Any], what: str) -> str | None:
    """Say why a job that does not fit is refused, without what to do about the check itself; None if it may fit.

    Args:
        estimate: from :func:`estimate_search`.
        what: has the memory, in words.
    """
    if estimate["fits"] is not False:
        return None
    memory = estimate["memory"]
    text = f"it needs about {size_text(memory['peak'])} of memory, and {what} has {size_text(memory['available'])}"
    return f"{text}; {estimate['too_large']}"


def size_text(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def summary(estimate: dict[str, Any]) -> str:
    """One line for people: time, tokens and memory; or why they are not known."""
    total, speed, memory = estimate["total"], estimate["speed"], estimate["memory"]
    parts = []
    if total["seconds"] is not None:
        rough = "" if speed is None or speed["calibrated"] else " (rough: the speed was not measured)"
        parts.append(f"about {duration(total['seconds'])}{rough}")
    if total["tokens"] is not None:
        parts.append(f"{total['tokens']:,} tokens")
    if memory is not None and memory["peak"] is not None:
        has = "" if memory["available"] is None else f" of {size_text(memory['available'])}"
        parts.append(f"{size_text(memory['peak'])}{has} memory")
    workers = f" with {estimate['workers']} workers" if (estimate.get("workers") or 1) > 1 else ""
    unknown = f"; {'; '.join(estimate['notes'])}" if total["seconds"] is None and estimate["notes"] else ""
    return f"estimate: {', '.join(parts) or 'none'}{workers}{unknown}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
