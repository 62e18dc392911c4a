"""Search strategies behind one ask/tell contract."""

import math
from collections.abc import Sequence
from typing import Protocol

from factor_search.factors import Factors
from factor_search.space import SearchSpace
from factor_search.spec import AutoSpec, BudgetSpec, EvolutionSpec, StrategySpec
from factor_search.strategies.evolution import Evolution


class Strategy(Protocol):
    """Proposes candidates generation by generation; does no I/O, and is a function of its seed and what it is told."""

    def ask(self) -> list[Factors]:
        """The next generation: candidates not proposed before; empty when the search is over."""
        ...

    def tell(self, losses: Sequence[float]) -> None:
        """The losses of the last generation, in the order proposed; infinite for a candidate that failed.

        Fewer than proposed may be told, if the budget ended first.
        """
        ...


def build_strategy(
    spec: StrategySpec, space: SearchSpace, seeds: Sequence[Factors], budget: BudgetSpec, seed: int, stage: int = 0
) -> Strategy:
    """The strategy a specification asks for.

    Args:
        spec: kind and settings.
        space: the candidates allowed.
        seeds: good starting points (closed forms), best guess first; projected into the space.
        budget: lets ``auto`` fit its population to the candidates there will be.
        seed: of all randomness, with the stage and the generation.
        stage: position in a chain of searches.
    """
    settings = _evolution_for(budget) if isinstance(spec, AutoSpec) else spec
    return Evolution(settings, space, seeds, seed=seed, stage=stage)


def _evolution_for(budget: BudgetSpec) -> EvolutionSpec:
    """``auto``: the paper's proportions, shrunk until the budget holds at least ten generations."""
    candidates = budget.candidates or 1344
    population = min(64, max(10, candidates // 8))
    bred = min(16, max(2, (candidates - population) // 20))
    return EvolutionSpec(
        population=population,
        parents=population // 2,
        mutants=bred,
        crossovers=bred,
        generations=max(1, math.ceil(candidates / bred)),
    )
