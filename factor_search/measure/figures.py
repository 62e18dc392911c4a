"""Figures as reports hold them: each with its standard error over documents, and null where there is none."""

import math
from collections.abc import Sequence
from typing import Any

from factor_search.files.canonical_json import finite
from factor_search.measure.statistics import paired_difference, summarise


def figures(losses: Sequence[float], tokens: Sequence[int]) -> dict[str, Any] | None:
    """Perplexity of documents' mean losses (nats per token); None without any, as of an evaluation that failed."""
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
    """The mean of ``losses - reference`` in pairs, nats per token; above 0 where the reference is better."""
    if not losses or not reference:
        return {"difference": None, "difference_standard_error": None}
    mean, error = paired_difference(losses, reference, tokens)
    return {"difference": mean, "difference_standard_error": finite(error)}


def share(parts: Sequence[float], wholes: Sequence[float]) -> dict[str, Any] | None:
    """The mean of the parts over that of the wholes, one of each a document, with its standard error (delta method).

    None where the wholes' mean is not above 0: there is nothing to have a share of.
    """
    n, whole = len(wholes), math.fsum(wholes) / max(len(wholes), 1)
    if not parts or whole <= 0:
        return None
    ratio = math.fsum(parts) / math.fsum(wholes)
    spread = math.fsum((part - ratio * one) ** 2 for part, one in zip(parts, wholes, strict=True))
    error = math.sqrt(spread / (n - 1) / n) / whole if n > 1 else math.nan
    return {"share": ratio, "standard_error": finite(error)}
