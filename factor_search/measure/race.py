"""When a candidate is stopped before its last document: fixed before a generation begins.

Whether a candidate is stopped then depends on its own losses alone, so any worker can decide it, and a search that is
run again decides the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Race:
    """When a candidate is not evaluated any further."""

    documents: int
    """It is stopped after so many of the first documents in any case, unless these are all."""
    rival: tuple[float, ...] = ()
    """Loss of the evaluation to beat on each document, nats per token; empty if there is none."""
    margins: tuple[tuple[int, float], ...] = ()
    """After so many documents, stopped if on average so many nats worse than the rival."""

    def stops(self, losses: Sequence[float], total: int) -> bool:
        """Whether a candidate with these losses on the first documents is stopped there, of ``total`` documents."""
        count = len(losses)
        if count >= total:
            return False
        if count >= self.documents:
            return True
        margin = dict(self.margins).get(count)
        return margin is not None and mean_difference(losses, self.rival) > margin


def rungs(total: int) -> Iterator[int]:
    """After 1, 2, 4, ... of ``total`` documents a candidate may be stopped, and what is known of it is stored."""
    count = 1
    while count < total:
        yield count
        count *= 2


def mean_difference(losses: Sequence[float], rival: Sequence[float]) -> float:
    """Mean of ``losses - rival`` over the documents both have, in nats."""
    return math.fsum(a - b for a, b in zip(losses, rival, strict=False)) / min(len(losses), len(rival))
