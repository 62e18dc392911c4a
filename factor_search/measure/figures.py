"""Computes the figures of reports, each with its standard error over documents, or null where there is none."""

import math
from collections.abc import Sequence
from typing import Any

from factor_search.files.canonical_json import finite
from factor_search.measure.statistics import paired_difference, summarise


def figures(losses: Sequence[float], tokens: Sequence[int]) -> dict[str, Any] | None:
    """Compute the perplexity from the mean losses of documents (nats per token); None if the evaluation failed."""
    if not losses:
        return None
    summary = summarise(losses, tokens)
    return {
        "perplexity": finite(summary.perplexity),
        "standard_error": finite(summary.standard_error),
        "loss": summary.loss,
        "documents": summary.documents,
        "tokens": summary.tokens,
    }


def compared(losses: Sequence[float], reference: Sequence[float], tokens: Sequence[int]) -> dict[str, Any]:
    """Compute the paired mean of ``losses - reference`` in nats per token; it is above 0 if the reference is better."""
    if not losses or not reference:
        return {"difference": None, "difference_standard_error": None}
    mean, error = paired_difference(losses, reference, tokens)
    return {"difference": mean, "difference_standard_error": finite(error)}


def share(parts: Sequence[float], wholes: Sequence[float]) -> dict[str, Any] | None:
    """Compute mean(parts) / mean(wholes) over documents, with its standard error (delta method).

    The result is None if mean(wholes) is not above 0, where a share has no meaning.
    """
    n, whole = len(wholes), math.fsum(wholes) / max(len(wholes), 1)
    if not parts or whole <= 0:
        return None
    ratio = math.fsum(parts) / math.fsum(wholes)
    spread = math.fsum((part - ratio * one) ** 2 for part, one in zip(parts, wholes, strict=True))
    error = math.sqrt(spread / (n - 1) / n) / whole if n > 1 else math.nan
    return {"share": ratio, "standard_error": finite(error)}
