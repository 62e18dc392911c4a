"""The ask/tell contract that every strategy fulfils."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from factor_search.factors import Factors


@dataclass(frozen=True)
class Generation:
    """Candidates to be evaluated side by side."""

    candidates: tuple[Factors, ...] = ()
    """None of them means that the search is over."""
    documents: int | None = None
    """Evaluate only the first so many search documents, 1, 2, 4, ...; None for all. A candidate that was asked for on
    fewer documents before is continued from there."""


@dataclass(frozen=True)
class Result:
    """What became of a candidate."""

    loss: float
    """Mean loss over all search documents, nats per token; estimated from paired differences where the candidate was
    not evaluated on all of them. Infinite if it failed."""
    losses: tuple[float, ...] = ()
    """Of each document evaluated; empty if it failed."""
    short_loss: float | None = None
    """Mean loss within the model's original length on the documents evaluated, where the target is longer."""


class Strategy(Protocol):
    """Proposes candidates generation by generation; does no I/O, and is a function of its seed and what it is told."""

    def ask(self) -> Generation:
        """The next generation."""
        ...

    def tell(self, results: Sequence[Result]) -> None:
        """The results of the last generation, in the order proposed.

        Fewer than proposed may be told, if the budget ended first.
        """
        ...
