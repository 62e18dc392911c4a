"""The ask/tell interface of every strategy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from factor_search.factors import Factors

Check = Callable[[], None]
"""Called for each candidate while a strategy proposes; it may raise, since a pause or a cancellation does not wait."""


def no_check() -> None:
    """Do nothing: what a search in one process does, which is interrupted by a signal."""


@dataclass(frozen=True)
class Generation:
    """Candidates that can be evaluated in parallel."""

    candidates: tuple[Factors, ...] = ()
    """An empty tuple ends the search."""
    documents: int | None = None
    """How many of the first search documents to evaluate: 1, 2, 4, ..., or None for all. A candidate that was evaluated
    on fewer documents continues from there."""


@dataclass(frozen=True)
class Result:
    """The result of one candidate."""

    loss: float
    """Mean loss over all search documents, nats per token. It is estimated from paired differences if the candidate was
    not evaluated on all of them, and infinite if the candidate failed."""
    losses: tuple[float, ...] = ()
    """Loss of each document evaluated; empty if the candidate failed."""
    short_loss: float | None = None
    """Mean loss within the model's original length on the documents evaluated; None where it was not measured."""


class Strategy(Protocol):
    """Proposes candidates, one generation after another.

    A strategy does no I/O. What it proposes depends only on its seed and on the results it is told.
    """

    def ask(self) -> Generation:
        """Return the next generation."""
        ...

    def tell(self, results: Sequence[Result]) -> None:
        """Take the results of the last generation, in the order proposed.

        There are fewer results than candidates if the budget ended within the generation.
        """
        ...


def entropy(seed: int, *counters: int) -> list[int]:
    """Return the entropy of a random generator, for example of (seed, generation)."""
    # Earlier versions put a stage number, always 0, behind the seed. It stays here to keep their random streams.
    return [seed, 0, *counters]
