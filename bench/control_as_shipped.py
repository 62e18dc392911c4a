"""The public LongRoPE search as it behaves, for comparison only.

It is a new implementation from a description of its behaviour. Differences from the paper (2402.13753, algorithm 1):

* the population starts from one vector, YaRN with lambda interpolated where frequencies should be;
* the initial tokens and the attention factor are not searched;
* a mutation redraws genes from ``arange(left, right + step, step)``, which overshoots its right neighbour, and sweeps
  over the vector until the order happens to be restored, so that most genes change;
* a crossover returns at the first gene that it changes.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from factor_search.factors import Factors
from factor_search.methods import longrope_attention_factor
from factor_search.model.geometry import Geometry
from factor_search.search.strategies import Generation, Result

STEP = 0.01
SWEEPS = 1000
ATTEMPTS = 50

Vector = tuple[float, ...]


class ControlAsShipped:
    """Asks and tells like every strategy of :mod:`factor_search.search.strategies`."""

    def __init__(
        self,
        geometry: Geometry,
        target_length: int,
        *,
        seed: int,
        population: int = 64,
        parents: int = 32,
        mutants: int = 16,
        crossovers: int = 16,
        mutation_rate: float = 0.3,
        generations: int = 40,
    ) -> None:
        scale = target_length / geometry.original_length
        self._upper = 1.25 * scale
        self._attention_factor = longrope_attention_factor(scale, geometry.original_length)
        self._start = start_vector(geometry, target_length)
        self._sizes = (population, parents, mutants, crossovers)
        self._rate = mutation_rate
        self._generations = generations
        self._generation = 0
        self._rng = np.random.default_rng(seed)
        self._seen: set[Vector] = set()
        self._proposed: list[Vector] = []
        self._scored: list[tuple[float, int, Vector]] = []

    def ask(self) -> Generation:
        """The start vector and its mutants; then mutants and crossovers of the best."""
        population, parents, mutants, crossovers = self._sizes
        self._proposed = []
        if self._generation == 0:
            self._propose(self._start)
            for _ in range(population - 1):
                self._breed(lambda: self.mutate(self._start))
        elif self._generation <= self._generations:
            best = [vector for _, _, vector in sorted(self._scored)[:parents]]
            for _ in range(mutants):
                self._breed(lambda: self.mutate(self._pick(best)))
            for _ in range(crossovers):
                self._breed(lambda: self.cross(self._pick(best), self._pick(best)))
        self._generation += 1
        return Generation(tuple(Factors(vector, 0, self._attention_factor) for vector in self._proposed))

    def tell(self, results: Sequence[Result]) -> None:
        """Remember the losses of the last generation."""
        for vector, result in zip(self._proposed, results, strict=False):
            self._scored.append((result.loss, len(self._scored), vector))

    def _pick(self, vectors: list[Vector]) -> Vector:
        return vectors[int(self._rng.integers(len(vectors)))]

    def _breed(self, make: Callable[[], Vector]) -> None:
        for _ in range(ATTEMPTS):
            if self._propose(make()):
                return

    def _propose(self, vector: Vector) -> bool:
        if vector in self._seen:
            return False
        self._seen.add(vector)
        self._proposed.append(vector)
        return True

    def mutate(self, vector: Vector) -> Vector:
        """Sweep until the vector is in order again."""
        values = list(vector)
        for _ in range(SWEEPS):
            for i in np.flatnonzero(self._rng.random(len(values)) < self._rate):
                left = values[i - 1] if i else 1.0
                right = values[i + 1] if i + 1 < len(values) else self._upper
                choices = np.arange(left, right + STEP, STEP)  # overshoots, as shipped
                if len(choices):
                    values[i] = round(float(self._rng.choice(choices)), 2)
            if self._valid(values):
                return tuple(values)
        return vector

    def cross(self, first: Vector, second: Vector) -> Vector:
        """Change one gene."""
        for i in range(len(first)):
            child = (*first[:i], second[i], *first[i + 1 :])
            if second[i] != first[i] and self._rng.random() < 0.5 and self._valid(child):
                return child
        return first

    def _valid(self, values: Sequence[float]) -> bool:
        ordered = all(a <= b for a, b in itertools.pairwise(values))
        return ordered and values[0] >= 1.0 and values[-1] <= self._upper + 1e-9


def start_vector(geometry: Geometry, target_length: int) -> Vector:
    """YaRN's ramp applied to lambda itself instead of to 1 / lambda."""
    scale = target_length / geometry.original_length

    def dimension_of(rotations: float) -> float:
        length = geometry.original_length / (rotations * 2 * math.pi)
        return geometry.rotary_dim * math.log(length) / (2 * math.log(geometry.rope_theta))

    low, high = max(math.floor(dimension_of(32)), 0), min(math.ceil(dimension_of(1)), geometry.rotary_dim - 1)
    ramp = np.clip((np.arange(geometry.pairs) - low) / max(high - low, 0.001), 0, 1)
    return tuple(round(float(value), 2) for value in 1 + ramp * (scale - 1))
