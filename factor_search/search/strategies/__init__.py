"""Search strategies, all with the same ask/tell interface."""

from collections.abc import Sequence

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.auto import Auto
from factor_search.search.strategies.cma import Cma
from factor_search.search.strategies.contract import Check, Generation, Result, Strategy, no_check
from factor_search.search.strategies.evolution import Evolution
from factor_search.search.strategies.form import FormSearch
from factor_search.search.strategies.random import RandomSearch
from factor_search.spec import AutoSpec, CmaSpec, EvolutionSpec, Nsga2Spec, StrategySpec, TpeSpec

__all__ = ["Generation", "Result", "Strategy", "build_strategy"]


def build_strategy(
    spec: StrategySpec,
    space: SearchSpace,
    seeds: Sequence[Factors],
    seed: int,
    *,
    documents: int,
    check: Check = no_check,
    later: Sequence[Factors] = (),
) -> Strategy:
    """Build the strategy that a specification names.

    Args:
        spec: kind and settings.
        space: the candidates allowed.
        seeds: starting points such as closed forms, the best guess first; they are projected into the space.
        seed: determines all random numbers, together with the number of the generation.
        documents: number of search documents.
        check: called while the strategy proposes; may raise to stop it.
        later: more of them, which ``auto`` tries before CMA-ES; others put them behind the first ones.
    """
    if space.form is not None:
        return FormSearch(space.form, seeds, documents, seed=seed, check=check)
    if isinstance(spec, AutoSpec):
        return Auto(space, seeds, documents, seed=seed, check=check, later=later)
    every = (*seeds, *later)
    if isinstance(spec, EvolutionSpec):
        return Evolution(spec, space, every, seed=seed, check=check)
    if isinstance(spec, CmaSpec):
        return Cma(spec, space, every, seed=seed, check=check)
    if isinstance(spec, TpeSpec):
        from factor_search.search.strategies.tpe import tpe  # Optuna, which nothing else here needs, loads slowly

        return tpe(spec, space, every, seed=seed, check=check)
    if isinstance(spec, Nsga2Spec):
        from factor_search.search.strategies.nsga2 import nsga2

        return nsga2(spec, space, every, seed=seed, check=check)
    return RandomSearch(spec, space, every, seed=seed, check=check)
