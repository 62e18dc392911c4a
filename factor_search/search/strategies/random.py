"""Curves drawn at random: what any strategy must beat."""

from collections.abc import Sequence

import numpy as np

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Generation, Result
from factor_search.search.strategies.curve import Curve, Vector
from factor_search.spec import RandomSpec

ATTEMPTS = 50
"""Tries for each new candidate before a generation is left smaller."""


class RandomSearch:
    """The closed forms, then curves whose knots are uniform in log lambda, sorted where the space is monotone."""

    def __init__(
        self, spec: RandomSpec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, stage: int = 0
    ) -> None:
        self._curve = Curve(space, spec.knots)
        self._seeds = list(dict.fromkeys(space.factors(space.project(factors)) for factors in seeds))
        self._population = spec.population
        self._randomness = (seed, stage)
        self._generation = 0
        self._seen = set(self._seeds)

    def ask(self) -> Generation:
        """The closed forms with the first generation; every curve is drawn from (seed, stage, generation)."""
        rng = np.random.default_rng([*self._randomness, self._generation])
        proposed = list(self._seeds) if self._generation == 0 else []
        for _ in range(self._population * ATTEMPTS):
            if len(proposed) >= self._population:
                break
            factors = self._curve.factors(random_vector(self._curve, rng))
            if factors not in self._seen:
                self._seen.add(factors)
                proposed.append(factors)
        self._generation += 1
        return Generation(tuple(proposed))

    def tell(self, results: Sequence[Result]) -> None:
        """Nothing is learnt."""


def random_vector(curve: Curve, rng: np.random.Generator) -> Vector:
    """A vector uniform within its bounds, its knots sorted where the space is monotone."""
    low, high = curve.bounds.T
    vector: Vector = rng.uniform(low, high)
    if curve.space.monotone:
        vector[: curve.shape_size].sort()
    return vector
