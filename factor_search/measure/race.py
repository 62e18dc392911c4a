"""Decides when a candidate is stopped before its last document, by rules that are fixed before a generation begins.

The decision depends only on the candidate's own losses. So any worker can make it, and a resumed search makes the same
decisions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Race:
    """The rules by which candidates of a generation are stopped."""

    documents: int
    """Number of documents after which every candidate is stopped."""
    rival: tuple[float, ...] = ()
    """Losses of the evaluation to beat on each document, nats per token; empty if there is none."""
    margins: tuple[tuple[int, float], ...] = ()
    """Pairs of a number of documents and a margin in nats. After so many documents, a candidate is stopped if its mean
    loss exceeds that of the rival by more than the margin."""

    def stops(self, losses: Sequence[float], total: int) -> bool:
        """Return whether a candidate with these losses on the first of ``total`` documents is stopped there."""
        count = len(losses)
        if count >= total:
            return False
        if count >= self.documents:
            return True
        margin = dict(self.margins).get(count)
        return margin is not None and mean_difference(losses, self.rival) > margin


def rungs(total: int) -> Iterator[int]:
    """Yield the numbers of documents after which a candidate may be stopped: 1, 2, 4, ... below ``total``."""
    count = 1
    while count < total:
        yield count
        count *= 2


def mean_difference(losses: Sequence[float], rival: Sequence[float]) -> float:
    """Return the mean of ``losses - rival`` over the documents that both have, in nats."""
    return math.fsum(a - b for a, b in zip(losses, rival, strict=False)) / min(len(losses), len(rival))
