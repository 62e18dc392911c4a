"""Search strategies behind one ask/tell contract."""

from collections.abc import Sequence

from factor_search.factors import Factors
from factor_search.space import SearchSpace
from factor_search.spec import AutoSpec, CmaSpec, EvolutionSpec, Nsga2Spec, StrategySpec, TpeSpec
from factor_search.strategies.cma import Cma
from factor_search.strategies.contract import Generation, Result, Strategy
from factor_search.strategies.evolution import Evolution
from factor_search.strategies.nsga2 import nsga2
from factor_search.strategies.random import RandomSearch
from factor_search.strategies.tpe import tpe

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
    if isinstance(settings, EvolutionSpec):
        return Evolution(settings, space, seeds, seed=seed, stage=stage)
    if isinstance(settings, CmaSpec):
        return Cma(settings, space, seeds, seed=seed, stage=stage)
    if isinstance(settings, TpeSpec):
        return tpe(settings, space, seeds, seed=seed, stage=stage)
    if isinstance(settings, Nsga2Spec):
        return nsga2(settings, space, seeds, seed=seed, stage=stage)
    return RandomSearch(settings, space, seeds, seed=seed, stage=stage)
