"""The strategy of spaces with a form: a Gaussian process over its few numbers, on more and more documents."""

import math
from collections.abc import Sequence

import numpy as np

from factor_search.factors import Factors
from factor_search.measure.race import rungs
from factor_search.search.forms import FormSpace
from factor_search.search.strategies.contract import Check, no_check
from factor_search.search.strategies.progressive import Phase, Progressive, Vector

ON_FEWER = 3
"""Generations on each number of documents below all of them."""
SMALLEST, FIRST, LARGEST = 0.3, 1.0, 2.0
"""Radius of the trust region, in the widths of each number."""
PATIENCE = 8
"""Generations without improvement that end the search."""


class FormSearch(Progressive):
    """Searches the numbers of a closed form; the seeds are projected onto it by their shape."""

    def __init__(
        self, space: FormSpace, seeds: Sequence[Factors], documents: int, *, seed: int, check: Check = no_check
    ) -> None:
        """Prepare the search.

        Args:
            space: the form.
            seeds: closed forms and known factors, which start the search as the nearest of the form.
            documents: number of search documents.
            seed: determines all random numbers, together with the number of the generation.
            check: called while the strategy proposes; may raise to stop it.
        """
        super().__init__(documents, seed=seed, check=check)
        self._space, self._seeds = space, seeds
        self._points: dict[Factors, Vector] = {}

    def _search(self) -> Phase:
        yield from self._evaluate([self._at(point) for point in self._starts()], 1)
        radius = FIRST
        for documents in [*(count for count in rungs(self._documents) if count > 1), self._documents]:
            yield from self._promote(documents)
            done = without = 0
            is_last = documents >= self._documents
            while without < PATIENCE if is_last else done < ON_FEWER:
                made = self._proposed(documents, radius)
                if not any(factors not in self._known for factors in made) and radius <= SMALLEST:
                    break
                improved = yield from self._improve(made, documents)
                radius = min(1.3 * radius, LARGEST) if improved else max(0.8 * radius, SMALLEST)
                done, without = done + 1, 0 if improved else without + 1

    def _starts(self) -> list[Vector]:
        starts = self._space.starts()
        for factors in self._seeds:
            self._check()
            starts.append(self._space.nearest(factors))
        return starts

    def _at(self, point: Vector) -> Factors:
        factors = self._space.factors(point)
        self._points.setdefault(factors, np.asarray(point, dtype=float))
        return factors

    def _proposed(self, documents: int, radius: float) -> list[Factors]:
        estimate = self._estimator(documents)
        known = [(self._points[factors], estimate(factors)) for factors in self._known]
        finite = [(point, loss) for point, loss in known if math.isfinite(loss)]
        return [self._at(point) for point in self._proposals(finite, self._space.widths, self._space.bounds, radius)]
