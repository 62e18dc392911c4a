"""Tree-structured Parzen estimators over a curve of log lambda."""

from collections.abc import Sequence

from optuna.samplers import TPESampler

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.curve import Curve
from factor_search.search.strategies.curve_study import CurveStudy, derived_seed
from factor_search.spec import TpeSpec


def tpe(spec: TpeSpec, space: SearchSpace, seeds: Sequence[Factors], *, seed: int, stage: int = 0) -> CurveStudy:
    """Optuna's multivariate TPE; the candidates of a generation keep away from each other."""
    sampler = TPESampler(seed=derived_seed(seed, stage), multivariate=True, constant_liar=True, n_startup_trials=0)
    return CurveStudy(sampler, Curve(space, spec.knots), seeds, spec.population)
