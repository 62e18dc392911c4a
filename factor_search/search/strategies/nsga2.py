"""Optuna's NSGA-II over a curve of log lambda: it minimises the losses at the target and within the original length."""

from collections.abc import Sequence

from optuna.samplers import NSGAIISampler

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Check, no_check
from factor_search.search.strategies.curve import Curve
from factor_search.search.strategies.curve_study import CurveStudy, derived_seed
from factor_search.spec import Nsga2Spec


def nsga2(
    spec: Nsga2Spec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, check: Check = no_check
) -> CurveStudy:
    """Build a strategy from Optuna's NSGA-II; without a loss within the original length both objectives are equal."""
    sampler = NSGAIISampler(seed=derived_seed(seed), population_size=spec.population)
    return CurveStudy(sampler, Curve(space, spec.knots), seeds, spec.population, objectives=2, check=check)
