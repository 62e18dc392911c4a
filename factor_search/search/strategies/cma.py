"""CMA-ES over a curve of log lambda (Hansen, 1604.00772), restarted with growing populations."""

import math
from collections.abc import Sequence
from itertools import zip_longest

import cmaes
import numpy as np

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Check, Generation, Result, entropy, no_check
from factor_search.search.strategies.curve import Curve, Vector
from factor_search.spec import CmaSpec

FRUITLESS = 6
"""Populations in a row without a new candidate that end the search."""
LARGEST = 16
"""Largest size of a population, as a multiple of its first size."""


class Cma:
    """Proposes the closed forms first, then runs CMA-ES from the best of them.

    A population depends only on the seed, the number of the generation and the results told so far. Vectors that become
    equal on the grid are evaluated once, and the loss counts for each of them. If a population has no new candidate,
    CMA-ES has converged: it restarts at the best candidate with the first step size and twice the population.
    """

    def __init__(
        self, spec: CmaSpec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, check: Check = no_check
    ) -> None:
        self._check = check
        self._curve = Curve(space, spec.knots)
        self._seeds = list(dict.fromkeys(space.factors(space.project(factors)) for factors in seeds))
        self._sigma = spec.sigma
        self._population = spec.population
        self._largest = LARGEST * spec.population
        self._seed = seed
        self._generation = 0
        self._losses: dict[Factors, float] = {}
        """Loss of every candidate proposed; infinite if it failed or was not evaluated."""
        self._drawn: list[tuple[Vector, Factors]] = []
        self._proposed: tuple[Factors, ...] = ()
        self._cma: cmaes.CMA | None = None

    def ask(self) -> Generation:
        """Return the closed forms first, then the new candidates of the next population."""
        self._proposed = tuple(self._seeds) if self._generation == 0 else self._next_population()
        self._generation += 1
        return Generation(self._proposed)

    def tell(self, results: Sequence[Result]) -> None:
        """Store the losses and update the distribution."""
        for factors, result in zip_longest(self._proposed, results):
            self._losses[factors] = result.loss if result is not None else math.inf
        self._learn()

    def _next_population(self) -> tuple[Factors, ...]:
        for attempt in range(FRUITLESS):
            if self._cma is None or self._cma.should_stop():
                self._restart()
            assert self._cma is not None
            state = np.random.SeedSequence(entropy(self._seed, self._generation, attempt)).generate_state(1)
            self._cma.reseed_rng(int(state[0]))
            vectors = [self._drawn_from(self._cma) for _ in range(self._cma.population_size)]
            self._drawn = [(vector, self._factors(vector)) for vector in vectors]
            new = dict.fromkeys(factors for _, factors in self._drawn if factors not in self._losses)
            if new:
                return tuple(new)
            self._cma = None
        return ()

    def _drawn_from(self, cma: cmaes.CMA) -> Vector:
        self._check()
        vector: Vector = cma.ask()
        return vector

    def _factors(self, vector: Vector) -> Factors:
        self._check()
        return self._curve.factors(vector)

    def _restart(self) -> None:
        """Start a new distribution around the best candidate so far.

        CMA-ES runs without bounds, and the curve clips its vectors. The closed forms lie on the bounds in many
        dimensions: redrawing vectors inside them took twice as many candidates to reach a known optimum.
        """
        start = min(self._losses, key=lambda factors: self._losses[factors])
        self._cma = cmaes.CMA(mean=self._curve.vector(start), sigma=self._sigma, population_size=self._population)
        self._population = min(2 * self._population, self._largest)

    def _learn(self) -> None:
        drawn, self._drawn = self._drawn, []
        known = [loss for _, factors in drawn if math.isfinite(loss := self._losses[factors])]
        if self._cma is None or not known:
            return
        failed = max(known) + 1.0  # CMA-ES uses the order only; infinities would break its convergence test
        losses = [min(self._losses[factors], failed) for _, factors in drawn]
        self._cma.tell([(vector, loss) for (vector, _), loss in zip(drawn, losses, strict=True)])
