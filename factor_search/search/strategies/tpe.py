"""Optuna's tree-structured Parzen estimator over a curve of log lambda."""

from collections.abc import Sequence

from optuna.samplers import TPESampler

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.contract import Check, no_check
from factor_search.search.strategies.curve import Curve
from factor_search.search.strategies.curve_study import CurveStudy, derived_seed
from factor_search.spec import TpeSpec


def tpe(
    spec: TpeSpec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, check: Check = no_check
) -> CurveStudy:
    """Build a strategy from Optuna's multivariate TPE; the constant liar keeps a generation's candidates apart."""
    sampler = TPESampler(seed=derived_seed(seed), multivariate=True, constant_liar=True, n_startup_trials=0)
    return CurveStudy(sampler, Curve(space, spec.knots), seeds, spec.population, check=check)
