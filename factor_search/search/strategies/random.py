"""Random search over curves of log lambda: the baseline for every strategy."""

from collections.abc import Sequence

import numpy as np

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Check, Generation, Result, entropy, no_check
from factor_search.search.strategies.curve import Curve, Vector
from factor_search.spec import RandomSpec

ATTEMPTS = 50
"""Draws for each new candidate; a generation stays smaller if none of them is new."""


class RandomSearch:
    """Proposes the closed forms first, then random curves.

    The knots of a curve are uniform in log lambda, and sorted where the space is monotone.
    """

    def __init__(
        self, spec: RandomSpec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, check: Check = no_check
    ) -> None:
        self._check = check
        self._curve = Curve(space, spec.knots)
        self._seeds = list(dict.fromkeys(space.factors(space.project(factors)) for factors in seeds))
        self._population = spec.population
        self._seed = seed
        self._generation = 0
        self._seen = set(self._seeds)

    def ask(self) -> Generation:
        """Return the next curves, in the first generation after the closed forms.

        The curves of a generation depend only on the seed and the number of the generation.
        """
        rng = np.random.default_rng(entropy(self._seed, self._generation))
        proposed = list(self._seeds) if self._generation == 0 else []
        for _ in range(self._population * ATTEMPTS):
            if len(proposed) >= self._population:
                break
            self._check()
            factors = self._curve.factors(random_vector(self._curve, rng))
            if factors not in self._seen:
                self._seen.add(factors)
                proposed.append(factors)
        self._generation += 1
        return Generation(tuple(proposed))

    def tell(self, results: Sequence[Result]) -> None:
        """Ignore the results."""


def random_vector(curve: Curve, rng: np.random.Generator) -> Vector:
    """Draw a vector uniformly within its bounds; its knots are sorted where the space is monotone."""
    low, high = curve.bounds.T
    vector: Vector = rng.uniform(low, high)
    if curve.space.monotone:
        vector[: curve.shape_size].sort()
    return vector
