"""An Optuna sampler for rescale factors, for studies that users run themselves."""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study, Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from factor_search.factors import Factors
from factor_search.methods import closed_forms
from factor_search.model.geometry import Geometry
from factor_search.search.space import UPPER_BOUND_BEYOND, SearchSpace
from factor_search.search.strategies.cma import Cma
from factor_search.search.strategies.contract import Result
from factor_search.spec import CmaSpec, SpaceSpec

Params = Mapping[str, Any]


class RescaleFactorSampler(BaseSampler):
    """Samples the closed forms first, then runs CMA-ES over a non-decreasing curve of log lambda.

    ::

        sampler = RescaleFactorSampler(read_geometry(AutoConfig.from_pretrained(model)), target_length=131072)

        def objective(trial: optuna.Trial) -> float:
            return perplexity(sampler.suggest(trial))  # Factors, for whatever measures them

        optuna.create_study(sampler=sampler).optimize(objective, n_trials=200)

    The parameters are ``log_lambda_i``, a float in [0, log of the largest lambda] for each rotary pair i, and the
    categorical ``initial_tokens`` and ``attention_factor`` where the space has more than one choice. :meth:`suggest`
    asks for all of them. Parameters with other names or ranges are sampled independently at random.

    The sampler supports one objective. Its state lives in this object: another process or a later run starts a new
    search. A trial counts as failed if it failed, was pruned, was given other values, or still runs when all candidates
    of its generation have been proposed.
    """

    def __init__(
        self,
        geometry: Geometry,
        target_length: int,
        *,
        space: SpaceSpec | None = None,
        strategy: CmaSpec | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the sampler.

        Args:
            geometry: geometry of the model.
            target_length: target context length in tokens.
            space: the space of candidates; None is LongRoPE's with the larger upper bound of the strategy cma.
            strategy: settings of CMA-ES; None is the default.
            seed: determines all random numbers.

        Raises:
            SpecError: the target length or the space does not fit the model.
        """
        space = space or SpaceSpec(upper_bound=UPPER_BOUND_BEYOND)
        self._space = SearchSpace.build(space, geometry, target_length)
        seeds = list(closed_forms(geometry, target_length).values())
        self._strategy = Cma(strategy or CmaSpec(), self._space, seeds, seed=seed)
        self._independent = RandomSampler(seed=seed)
        self._distributions = self._parameters()
        self._waiting: list[Params] = []
        self._proposed: dict[int, Params] = {}
        """Candidates of the generation by the number of their trial, in the order of the generation."""
        self._losses: dict[int, float] = {}
        self._lock = threading.Lock()

    def suggest(self, trial: Trial) -> Factors:
        """Suggest all parameters of a trial, and return its candidate."""
        params: dict[str, Any] = {
            name: trial.suggest_float(name, distribution.low, distribution.high)
            if isinstance(distribution, FloatDistribution)
            else trial.suggest_categorical(name, distribution.choices)
            for name, distribution in self._distributions.items()
        }
        factors = Factors.of(
            [math.exp(params[f"log_lambda_{i}"]) for i in range(self._space.pairs)],
            params.get("initial_tokens", self._space.initial_tokens[0]),
            params.get("attention_factor", self._space.attention_factors[0]),
        )
        return self._space.factors(self._space.project(factors))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all parameters, from the first trial on."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the next candidate; other parameters are sampled at random."""
        self._raise_error_if_multi_objective(study)
        ours = {name for name, distribution in search_space.items() if self._distributions.get(name) == distribution}
        with self._lock:
            proposed = self._next(trial.number) if ours else {}
        return {
            name: proposed[name]
            if name in ours & set(proposed)
            else self.sample_independent(study, trial, name, wanted)
            for name, wanted in search_space.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter at random."""
        self._raise_error_if_multi_objective(study)
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Store the loss, if the trial used the candidate proposed."""
        with self._lock:
            proposed = self._proposed.get(trial.number)
            if proposed == trial.params and state == TrialState.COMPLETE and values is not None:
                self._losses[trial.number] = -values[0] if study.direction == StudyDirection.MAXIMIZE else values[0]

    def reseed_rng(self) -> None:
        """Reseed independent sampling; the candidates keep their order."""
        self._independent.reseed_rng()

    def _next(self, number: int) -> Params:
        """Return the candidate for a trial; it is empty when the space is exhausted."""
        if not self._waiting:
            if self._proposed:
                self._strategy.tell([Result(self._losses.get(trial, math.inf)) for trial in self._proposed])
            self._proposed, self._losses = {}, {}
            self._waiting = [self._params(factors) for factors in self._strategy.ask().candidates]
        if self._waiting:
            self._proposed[number] = self._waiting.pop(0)
        return self._proposed.get(number, {})

    def _params(self, factors: Factors) -> Params:
        values = {f"log_lambda_{i}": math.log(value) for i, value in enumerate(factors.rescale_factors)}
        others = {"initial_tokens": factors.initial_tokens, "attention_factor": factors.attention_factor}
        return values | {name: value for name, value in others.items() if name in self._distributions}

    def _parameters(self) -> dict[str, FloatDistribution | CategoricalDistribution]:
        highest = math.log(1 + self._space.step * self._space.top_level)
        choices = {
            "initial_tokens": self._space.initial_tokens,
            "attention_factor": self._space.attention_factors,
        }
        shape = {f"log_lambda_{i}": FloatDistribution(0.0, highest) for i in range(self._space.pairs)}
        return shape | {name: CategoricalDistribution(values) for name, values in choices.items() if len(values) > 1}
