"""CMA-ES over a curve of log lambda (Hansen, 1604.00772), with restarts in growing populations."""

import math
from collections.abc import Sequence
from itertools import zip_longest

import cmaes
import numpy as np

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Generation, Result
from factor_search.search.strategies.curve import Curve, Vector
from factor_search.spec import CmaSpec

FRUITLESS = 6
"""Populations in a row without a new candidate after which the space counts as exhausted."""
LARGEST = 16
"""Multiple of its first size to which a population grows."""


class Cma:
    """First the closed forms as they are; then CMA-ES from the best of them.

    A population is drawn from (seed, stage, generation) and from what was told before. Drawn vectors that the grid
    makes equal are evaluated once, and their loss counts for each. A population that brings nothing new has converged:
    the next one starts at the best candidate, twice as large and with the first step size again.
    """

    def __init__(
        self, spec: CmaSpec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, stage: int = 0
    ) -> None:
        self._curve = Curve(space, spec.knots)
        self._seeds = list(dict.fromkeys(space.factors(space.project(factors)) for factors in seeds))
        self._sigma = spec.sigma
        self._population = spec.population
        self._largest = LARGEST * spec.population
        self._randomness = (seed, stage)
        self._generation = 0
        self._losses: dict[Factors, float] = {}
        """Of every candidate proposed; infinite if it failed or was not evaluated."""
        self._drawn: list[tuple[Vector, Factors]] = []
        self._proposed: tuple[Factors, ...] = ()
        self._cma: cmaes.CMA | None = None

    def ask(self) -> Generation:
        """The closed forms, then whatever is new of the next population."""
        self._proposed = tuple(self._seeds) if self._generation == 0 else self._next_population()
        self._generation += 1
        return Generation(self._proposed)

    def tell(self, results: Sequence[Result]) -> None:
        """Remember the losses, and move the distribution."""
        for factors, result in zip_longest(self._proposed, results):
            self._losses[factors] = result.loss if result is not None else math.inf
        self._learn()

    def _next_population(self) -> tuple[Factors, ...]:
        for attempt in range(FRUITLESS):
            if self._cma is None or self._cma.should_stop():
                self._restart()
            assert self._cma is not None
            state = np.random.SeedSequence([*self._randomness, self._generation, attempt]).generate_state(1)
            self._cma.reseed_rng(int(state[0]))
            vectors = [self._cma.ask() for _ in range(self._cma.population_size)]
            self._drawn = [(vector, self._curve.factors(vector)) for vector in vectors]
            new = dict.fromkeys(factors for _, factors in self._drawn if factors not in self._losses)
            if new:
                return tuple(new)
            self._cma = None
        return ()

    def _restart(self) -> None:
        """A new distribution around the best candidate so far.

        It knows no bounds: the curve clips what lies beyond, and redrawing inside them, where the closed forms sit on
        the edge in many dimensions, took twice as many candidates to a known optimum.
        """
        start = min(self._losses, key=lambda factors: self._losses[factors])
        self._cma = cmaes.CMA(mean=self._curve.vector(start), sigma=self._sigma, population_size=self._population)
        self._population = min(2 * self._population, self._largest)

    def _learn(self) -> None:
        drawn, self._drawn = self._drawn, []
        known = [loss for _, factors in drawn if math.isfinite(loss := self._losses[factors])]
        if self._cma is None or not known:
            return
        failed = max(known) + 1.0  # only the order counts; infinities would spoil the test for convergence
        losses = [min(self._losses[factors], failed) for _, factors in drawn]
        self._cma.tell([(vector, loss) for (vector, _), loss in zip(drawn, losses, strict=True)])
