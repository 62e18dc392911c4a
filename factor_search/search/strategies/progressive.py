"""What strategies share that evaluate candidates on few documents first, and the best of them on more."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.measure.race import mean_difference
from factor_search.search.strategies.contract import Check, Generation, Result, entropy
from factor_search.search.strategies.surrogate import propose

Vector = NDArray[np.float64]
Phase = Generator[Generation, Sequence[Result], None]
"""A part of the search: it yields generations and is sent their results."""
GENERATION = 4
"""Candidates that the Gaussian process proposes per generation."""
PROMOTED = 4
"""How many of the best candidates are evaluated on more documents."""
KNOWN_POINTS = 120
"""Points with the lowest losses that the Gaussian process uses."""
LARGEST_EXCESS = 0.3
"""Nats above the best loss at which losses are clipped, so that outliers do not distort the Gaussian process."""
LEAST_IMPROVEMENT = 2e-4
"""Nats that count as an improvement."""


class Progressive(ABC):
    """A search as a sequence of phases, with the losses of each candidate on the first documents."""

    def __init__(self, documents: int, *, seed: int, check: Check) -> None:
        """Prepare the search.

        Args:
            documents: number of search documents.
            seed: determines all random numbers, together with the number of the generation.
            check: called while the strategy proposes; may raise to stop it.
        """
        self._check = check
        self._documents = documents
        self._seed = seed
        self._generation = 0
        self._known: dict[Factors, tuple[float, ...]] = {}
        """Losses of each candidate on the first documents; empty if it failed."""
        self._phases = self._search()
        self._results: list[Result] | None = None
        self._asked: list[Factors] = []

    @abstractmethod
    def _search(self) -> Phase:
        """The whole search; it begins when the first generation is asked for."""

    def ask(self) -> Generation:
        """Return the next generation that has a new candidate or more documents."""
        try:
            generation = next(self._phases) if self._results is None else self._phases.send(self._results)
        except StopIteration:
            return Generation()
        self._generation += 1
        self._asked = list(generation.candidates)
        self._results = []
        return generation

    def tell(self, results: Sequence[Result]) -> None:
        """Store the losses of the last generation."""
        self._results = list(results)
        for factors, result in zip(self._asked, results, strict=False):
            if not result.losses or len(result.losses) >= len(self._known.get(factors, ())):
                self._known[factors] = result.losses  # empty also for a candidate that fails on a later document
        for factors in self._asked[len(results) :]:
            self._known.setdefault(factors, ())

    def _evaluate(self, candidates: Iterable[Factors], documents: int) -> Phase:
        """Ask for the candidates that were not evaluated on so many documents and have not failed."""
        wanted = [factors for factors in dict.fromkeys(candidates) if self._wanting(factors, documents)]
        if wanted:
            yield Generation(tuple(wanted), documents if documents < self._documents else None)

    def _wanting(self, factors: Factors, documents: int) -> bool:
        losses = self._known.get(factors)
        return losses is None or 0 < len(losses) < documents

    def _improve(self, candidates: Sequence[Factors], documents: int) -> Generator[Generation, Sequence[Result], bool]:
        before = self._lowest(documents)
        yield from self._evaluate([factors for factors in candidates if factors not in self._known], documents)
        return self._lowest(documents) < before - LEAST_IMPROVEMENT

    def _promote(self, documents: int) -> Phase:
        """Evaluate the best candidates on more documents."""
        most = max(len(losses) for losses in self._known.values())
        ranked = sorted((f for f, losses in self._known.items() if losses), key=lambda f: self._rank(f, most))
        yield from self._evaluate(ranked[:PROMOTED], documents)

    def _best(self, documents: int) -> Factors:
        """Return the candidate with the lowest loss on so many documents, or on the most that any was evaluated on."""
        most = min(max(len(losses) for losses in self._known.values()), documents)
        return min(self._known, key=lambda factors: self._rank(factors, most))

    def _rank(self, factors: Factors, documents: int) -> tuple[bool, float]:
        losses = self._known[factors]
        return len(losses) < max(documents, 1), math.fsum(losses[:documents]) / max(len(losses[:documents]), 1)

    def _lowest(self, documents: int) -> float:
        return self._estimator(documents)(self._best(documents))

    def _estimator(self, documents: int) -> Callable[[Factors], float]:
        """Return a function that estimates a candidate's mean loss on so many documents.

        If the candidate was not evaluated on all of them, the estimate uses its paired difference to the best. It is
        infinite if the candidate was evaluated on none.
        """
        best = self._known[self._best(documents)][:documents]

        def estimate(factors: Factors) -> float:
            losses = self._known.get(factors, ())
            if not losses or not best:
                return math.inf
            return math.fsum(best) / len(best) + mean_difference(losses[:documents], best)

        return estimate

    def _proposals(
        self, points: Iterable[tuple[Vector, float]], widths: Vector, bounds: Vector, radius: float
    ) -> list[Vector]:
        known = sorted(((vector, loss) for vector, loss in points if math.isfinite(loss)), key=itemgetter(1))
        known = known[:KNOWN_POINTS]
        self._check()
        if not known:
            return []
        ceiling = known[0][1] + LARGEST_EXCESS
        return propose(
            np.array([vector for vector, _ in known]),
            [min(loss, ceiling) for _, loss in known],
            widths=widths,
            bounds=bounds,
            radius=radius,
            count=GENERATION,
            rng=self._rng(),
        )

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(entropy(self._seed, self._generation))
