"""Search strategies behind one ask/tell contract."""

from collections.abc import Sequence
from typing import Protocol

from factor_search.factors import Factors
from factor_search.space import SearchSpace
from factor_search.spec import AutoSpec, EvolutionSpec, StrategySpec
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


AUTO = EvolutionSpec(population=24, parents=12, mutants=8, crossovers=8, generations=1_000_000)
"""What ``auto`` stands for: a small population, which a budget of a few hundred candidates can breed ten times. It does
not depend on the budget, so that a search continues where a smaller budget ended it."""


def build_strategy(
    spec: StrategySpec, space: SearchSpace, seeds: Sequence[Factors], seed: int, stage: int = 0
) -> Strategy:
    """The strategy a specification asks for.

    Args:
        spec: kind and settings.
        space: the candidates allowed.
        seeds: good starting points (closed forms), best guess first; projected into the space.
        seed: of all randomness, with the stage and the generation.
        stage: position in a chain of searches.
    """
    return Evolution(AUTO if isinstance(spec, AutoSpec) else spec, space, seeds, seed=seed, stage=stage)
