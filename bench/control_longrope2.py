"""The search of LongRoPE2 (2502.20082), for comparison only: NTK before the critical pair, free factors from it on.

It is a new implementation from the paper's description and from what the public code does:

* the first candidates are NTK up to the critical pair and nearly constant behind it, for scales from s upwards;
* the critical pair is searched: it lies at the theoretical one or before it;
* from the critical pair on, factors are free between s and the bound of 2 s, in order; before it, they follow
  lambda_i = lambda_c^(i/c), where c is the critical pair;
* mutants redraw genes between their neighbours; a crossover takes some genes of another parent,
  or is replaced by a mutant if that gives nothing new.

Differences: the objective is that of the benchmark instead of needles, which models of a few million parameters that
read bytes do not answer.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from factor_search.factors import Factors
from factor_search.methods import longrope_attention_factor
from factor_search.model.geometry import Geometry
from factor_search.search.strategies import Generation, Result

FIRST_SCALES = 8
"""Candidates of the first population that are no mutants."""
HIGHEST = 2.0
"""Bound of a factor, in scales."""
EARLIER = 6
"""Pairs before the theoretical critical pair that may be the critical one."""
RATE = 0.3
"""Probability that a gene is redrawn."""
ATTEMPTS = 50

Genes = tuple[int, tuple[float, ...]]
"""The critical pair, and the factors from it on."""


class ControlLongRope2:
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
        generations: int = 40,
    ) -> None:
        self._scale = target_length / geometry.original_length
        self._pairs = geometry.pairs
        self._attention_factor = longrope_attention_factor(self._scale, geometry.original_length)
        self._latest = min(max(math.ceil(geometry.critical_dimension / 2), 1), geometry.pairs - 1)
        self._sizes = (population, parents, mutants, crossovers)
        self._generations, self._generation = generations, 0
        self._rng = np.random.default_rng(seed)
        self._seen: set[Genes] = set()
        self._proposed: list[Genes] = []
        self._scored: list[tuple[float, int, Genes]] = []

    def ask(self) -> Generation:
        """NTK-like candidates and their mutants; then mutants and crossovers of the best."""
        population, parents, mutants, crossovers = self._sizes
        self._proposed = []
        if self._generation == 0:
            starts = [self._start(number) for number in range(FIRST_SCALES)]
            for genes in starts:
                self._propose(genes)
            while len(self._proposed) < population:
                self._breed([starts[int(self._rng.integers(len(starts)))]])
        elif self._generation <= self._generations:
            best = [genes for _, _, genes in sorted(self._scored)[:parents]]
            for _ in range(mutants):
                self._breed([best[int(self._rng.integers(len(best)))]])
            for _ in range(crossovers):
                pair = [best[int(index)] for index in self._rng.choice(len(best), 2, replace=False)]
                if not self._breed(pair):
                    self._breed(pair[:1])
        self._generation += 1
        return Generation(tuple(self._factors(genes) for genes in self._proposed))

    def tell(self, results: Sequence[Result]) -> None:
        """Remember the losses of the last generation."""
        for genes, result in zip(self._proposed, results, strict=False):
            self._scored.append((result.loss, len(self._scored), genes))

    def _start(self, number: int) -> Genes:
        critical = max(self._latest - number % (EARLIER + 1), 1)
        scale = self._scale * (1 + (HIGHEST - 1) * number / (2 * FIRST_SCALES))
        return critical, tuple(min(scale + 0.1 * i, HIGHEST * self._scale) for i in range(self._pairs - critical))

    def _factors(self, genes: Genes) -> Factors:
        critical, free = genes
        before = (free[0] ** (i / critical) for i in range(critical))
        return Factors((*before, *free), 0, self._attention_factor)

    def _breed(self, parents: Sequence[Genes]) -> bool:
        return any(
            self._propose(self._mutant(parents[0]) if len(parents) == 1 else self._cross(*parents))
            for _ in range(ATTEMPTS)
        )

    def _propose(self, genes: Genes) -> bool:
        if genes in self._seen:
            return False
        self._seen.add(genes)
        self._proposed.append(genes)
        return True

    def _mutant(self, genes: Genes) -> Genes:
        critical, values = genes[0], list(genes[1])
        if self._rng.random() < RATE:
            moved = int(np.clip(critical + self._rng.choice([-1, 1]), max(self._latest - EARLIER, 1), self._latest))
            values = [values[0]] * max(critical - moved, 0) + values[max(moved - critical, 0) :]
            critical = moved
        for i in np.flatnonzero(self._rng.random(len(values)) < RATE):
            left = values[i - 1] if i else self._scale
            right = values[i + 1] if i + 1 < len(values) else HIGHEST * self._scale
            values[i] = round(float(self._rng.uniform(left, right)), 2)
        return critical, tuple(itertools.accumulate(values, max))

    def _cross(self, first: Genes, second: Genes) -> Genes:
        critical, values = first
        other = second[1][-len(values) :] if len(second[1]) >= len(values) else second[1]
        offset = len(values) - len(other)
        taken = [
            other[i - offset] if i >= offset and self._rng.random() < RATE else value for i, value in enumerate(values)
        ]
        return critical, tuple(itertools.accumulate(taken, max))
