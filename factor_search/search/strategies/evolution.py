"""The evolutionary search of the LongRoPE paper (2402.13753, algorithm 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factor_search.factors import Factors
from factor_search.search.space import Genome, SearchSpace
from factor_search.search.strategies.contract import Check, Generation, Result, entropy, no_check
from factor_search.spec import EvolutionSpec

ATTEMPTS = 50
"""Draws for each new candidate; a generation stays smaller if none of them is new."""


@dataclass(frozen=True)
class _Scored:
    loss: float
    order: int
    """Order of proposal; it breaks ties between equal losses."""
    genome: Genome


class Evolution:
    """Evolves a population of closed forms and their mutants by mutation and crossover.

    The parents of a generation are the best candidates found so far. Every candidate proposed is new and lies in the
    space. The random numbers of a generation depend only on the seed and the number of the generation.
    """

    def __init__(
        self, spec: EvolutionSpec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, check: Check = no_check
    ) -> None:
        self._check = check
        self._spec = spec
        self._space = space
        self._seeds = [space.project(factors) for factors in seeds]
        self._seed = seed
        self._generation = 0
        self._proposed: list[Genome] = []
        self._seen: set[Genome] = set()
        self._scored: list[_Scored] = []

    def ask(self) -> Generation:
        """Return the seeds and their mutants first, then mutants and crossovers of the best candidates."""
        self._rng = np.random.default_rng(entropy(self._seed, self._generation))
        self._proposed = []
        if self._generation == 0:
            for genome in self._seeds[: self._spec.population]:
                self._propose(genome)
            while len(self._proposed) < self._spec.population and self._propose_mutant(self._seeds):
                pass
        elif self._generation <= self._spec.generations:
            parents = [scored.genome for scored in self._best()] or self._seeds
            for _ in range(self._spec.mutants):
                self._propose_mutant(parents)
            for _ in range(self._spec.crossovers):  # a mutant takes the place of a crossover that is not new
                self._propose_crossover(parents) or self._propose_mutant(parents)
        self._generation += 1
        return Generation(tuple(self._space.factors(genome) for genome in self._proposed))

    def tell(self, results: Sequence[Result]) -> None:
        """Store the losses of the last generation."""
        for genome, result in zip(self._proposed, results, strict=False):
            self._scored.append(_Scored(result.loss, len(self._scored), genome))

    def _best(self) -> list[_Scored]:
        alive = (scored for scored in self._scored if math.isfinite(scored.loss))
        return sorted(alive, key=lambda scored: (scored.loss, scored.order))[: self._spec.parents]

    def _propose(self, genome: Genome) -> bool:
        """Add a genome to the generation, unless it was proposed before."""
        if genome in self._seen:
            return False
        self._seen.add(genome)
        self._proposed.append(genome)
        return True

    def _propose_mutant(self, parents: Sequence[Genome]) -> bool:
        self._check()
        rate, rng = self._spec.mutation_rate, self._rng
        return any(self._propose(mutate(self._pick(parents), self._space, rate, rng)) for _ in range(ATTEMPTS))

    def _propose_crossover(self, parents: Sequence[Genome]) -> bool:
        self._check()
        pairs = (self._rng.choice(len(parents), size=2, replace=False) for _ in range(ATTEMPTS))
        return len(parents) > 1 and any(
            self._propose(cross(parents[a], parents[b], self._space, self._rng)) for a, b in pairs
        )

    def _pick(self, parents: Sequence[Genome]) -> Genome:
        return parents[int(self._rng.integers(len(parents)))]


def mutate(genome: Genome, space: SearchSpace, rate: float, rng: np.random.Generator) -> Genome:
    """Redraw each gene with probability ``rate``; a lambda is drawn between its neighbours, which keeps the order."""

    def redraw(index: int, choices: int) -> int:
        return int(rng.integers(choices)) if rng.random() < rate else index

    critical = redraw(genome.critical, len(space.critical_pairs)) if len(space.critical_pairs) > 1 else 0
    free_from = space.critical_pairs[critical]
    levels = list(genome.levels)
    for i in np.flatnonzero(rng.random(space.pairs) < rate):
        if i >= free_from:
            low, high = space.gene_bounds(levels, int(i), free_from)
            levels[i] = int(rng.integers(low, high + 1))
    mutant = Genome(
        tuple(levels),
        redraw(genome.initial_tokens, len(space.initial_tokens)),
        redraw(genome.attention, len(space.attention_factors)),
        critical,
    )
    return space.restrict(mutant)


def cross(first: Genome, second: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome:
    """Take each gene from one of two parents at random.

    If that gene would break the order, the gene of the other parent is taken. One of the two always fits: the previous
    gene came from one of the parents, and the next gene of the same parent is never smaller.
    """
    coins = rng.random(space.pairs + 2) < 0.5
    levels: list[int] = []
    for a, b, coin in zip(first.levels, second.levels, coins, strict=False):
        chosen, other = (a, b) if coin else (b, a)
        fits = not space.monotone or not levels or chosen >= levels[-1]
        levels.append(chosen if fits else other)
    heir = first if len(space.critical_pairs) == 1 or rng.random() < 0.5 else second
    child = Genome(
        tuple(levels),
        first.initial_tokens if coins[-2] else second.initial_tokens,
        first.attention if coins[-1] else second.attention,
        heir.critical,
    )
    return space.restrict(child)
