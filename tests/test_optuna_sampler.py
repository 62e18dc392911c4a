import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase

from factor_search.factors import Factors
from factor_search.methods import closed_forms
from factor_search.search.optuna_sampler import RescaleFactorSampler
from factor_search.search.space import SearchSpace
from factor_search.search.strategies.cma import Cma
from factor_search.search.strategies.contract import Result
from factor_search.spec import CmaSpec, SpaceSpec
from tests.synthetic import geometry

GEOMETRY = geometry(pairs=16)
TARGET = 2048
SPACE = SpaceSpec(attention_factor="search")


def loss_of(factors: Factors) -> float:
    wanted = np.linspace(0, 1.4, 16) ** 2
    return float(np.mean((np.log(factors.rescale_factors) - wanted) ** 2)) + 0.001 * factors.initial_tokens


class TestConformance(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Optuna's own tests of a sampler of one objective."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: RescaleFactorSampler(GEOMETRY, TARGET)


def run(
    trials: int, *, direction: str = "minimize", seed: int = 0, jobs: int = 1
) -> tuple[optuna.Study, list[Factors]]:
    sampler = RescaleFactorSampler(GEOMETRY, TARGET, space=SPACE, seed=seed)
    seen: list[Factors] = []

    def objective(trial: optuna.Trial) -> float:
        seen.append(sampler.suggest(trial))
        return loss_of(seen[-1]) * (1 if direction == "minimize" else -1)

    study = optuna.create_study(sampler=sampler, direction=direction)
    study.optimize(objective, n_trials=trials, n_jobs=jobs)
    return study, seen


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_study_walks_the_path_of_the_strategy(direction: str) -> None:
    _, seen = run(60, direction=direction)
    space = SearchSpace.build(SPACE, GEOMETRY, TARGET)
    strategy = Cma(CmaSpec(), space, list(closed_forms(GEOMETRY, TARGET).values()), seed=0)
    expected: list[Factors] = []
    while len(expected) < 60:
        proposed = strategy.ask().candidates
        expected += proposed
        strategy.tell([Result(loss_of(factors)) for factors in proposed])
    assert seen == expected[:60]


def test_it_improves_on_the_closed_forms() -> None:
    study, seen = run(150)
    assert study.best_value < 0.3 * min(map(loss_of, seen[:8]))
    assert run(40, seed=1)[1] != run(40, seed=2)[1], "behind the closed forms"


def test_parallel_trials_lose_little() -> None:
    study, seen = run(150, jobs=3)
    assert len(set(seen)) == 150
    assert study.best_value < 0.5 * min(map(loss_of, seen[:8]))


def test_a_trial_with_values_of_its_own_says_nothing_of_the_candidate() -> None:
    sampler = RescaleFactorSampler(GEOMETRY, TARGET)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"log_lambda_3": 0.5})
    trial = study.ask()
    sampler.suggest(trial)
    study.tell(trial, 1.0)
    assert sampler._losses == {}


def test_another_range_is_drawn_at_random() -> None:
    study = optuna.create_study(sampler=RescaleFactorSampler(GEOMETRY, TARGET))
    values = {study.ask().suggest_float("log_lambda_0", -2.0, -1.0) for _ in range(5)}
    assert len(values) == 5
    assert all(-2 <= value <= -1 and math.isfinite(value) for value in values)
