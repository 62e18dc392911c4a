"""Perplexity over documents and paired differences, with their standard errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Summary:
    """The perplexity over documents, with its uncertainty."""

    perplexity: float
    """exp(loss)."""
    standard_error: float
    """Standard error of the perplexity over documents (delta method); NaN for a single document."""
    loss: float
    """Mean loss in nats per scored token."""
    tokens: int
    """Tokens scored."""
    documents: int


def summarise(losses: Sequence[float], tokens: Sequence[int]) -> Summary:
    """Summarise the mean losses of documents (nats per token), each weighted by its number of scored tokens."""
    mean, error = _weighted_mean(losses, tokens)
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return Summary(perplexity, perplexity * error, mean, sum(tokens), len(losses))


def paired_difference(
    losses: Sequence[float], reference: Sequence[float], tokens: Sequence[int]
) -> tuple[float, float]:
    """Return the mean of ``losses - reference`` and its standard error over documents (NaN for a single document).

    Documents are weighted by their tokens, so the mean is the difference of the two summaries' losses, in nats per
    token.
    """
    differences = [a - b for a, b in zip(losses, reference, strict=True)]
    return _weighted_mean(differences, tokens)


def student_quantile(probability: float, degrees: int) -> float:
    """Compute the quantile of Student's t by expansion around the normal quantile (Abramowitz and Stegun, 26.7.5)."""
    z, n = NormalDist().inv_cdf(probability), degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, start=1))


def _weighted_mean(values: Sequence[float], weights: Sequence[int]) -> tuple[float, float]:
    """Compute the ratio estimator sum(w v) / sum(w) and its standard error over a random sample of documents."""
    total, n = sum(weights), len(values)
    mean = math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    spread = math.fsum((weight * (value - mean)) ** 2 for value, weight in zip(values, weights, strict=True))
    return mean, math.sqrt(spread * n / (n - 1)) / total if n > 1 else math.nan
