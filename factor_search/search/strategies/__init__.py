"""Search strategies behind one ask/tell contract."""

from collections.abc import Sequence

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.auto import Auto
from factor_search.search.strategies.cma import Cma
from factor_search.search.strategies.contract import Generation, Result, Strategy
from factor_search.search.strategies.evolution import Evolution
from factor_search.search.strategies.nsga2 import nsga2
from factor_search.search.strategies.random import RandomSearch
from factor_search.search.strategies.tpe import tpe
from factor_search.spec import AutoSpec, CmaSpec, EvolutionSpec, Nsga2Spec, StrategySpec, TpeSpec

__all__ = ["Generation", "Result", "Strategy", "build_strategy"]


def build_strategy(
    spec: StrategySpec, space: SearchSpace, seeds: Sequence[Factors], seed: int, *, documents: int, stage: int = 0
) -> Strategy:
    """The strategy a specification asks for.

    Args:
        spec: kind and settings.
        space: the candidates allowed.
        seeds: good starting points (closed forms), best guess first; projected into the space.
        seed: of all randomness, with the stage and the generation.
        documents: to search on.
        stage: position in a chain of searches.
    """
    if isinstance(spec, AutoSpec):
        return Auto(space, seeds, documents, seed=seed, stage=stage)
    if isinstance(spec, EvolutionSpec):
        return Evolution(spec, space, seeds, seed=seed, stage=stage)
    if isinstance(spec, CmaSpec):
        return Cma(spec, space, seeds, seed=seed, stage=stage)
    if isinstance(spec, TpeSpec):
        return tpe(spec, space, seeds, seed=seed, stage=stage)
    if isinstance(spec, Nsga2Spec):
        return nsga2(spec, space, seeds, seed=seed, stage=stage)
    return RandomSearch(spec, space, seeds, seed=seed, stage=stage)
