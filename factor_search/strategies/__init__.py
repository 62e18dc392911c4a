"""Search strategies behind one ask/tell contract."""

from collections.abc import Sequence

from factor_search.factors import Factors
from factor_search.space import SearchSpace
from factor_search.spec import AutoSpec, EvolutionSpec, StrategySpec
from factor_search.strategies.contract import Generation, Result, Strategy
from factor_search.strategies.evolution import Evolution

__all__ = ["AUTO", "Generation", "Result", "Strategy", "build_strategy"]


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
    settings = AUTO if isinstance(spec, AutoSpec) else spec
    assert isinstance(settings, EvolutionSpec)
    return Evolution(settings, space, seeds, seed=seed, stage=stage)
