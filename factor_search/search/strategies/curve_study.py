"""Runs Optuna's samplers as strategies: an in-memory study over a curve of log lambda."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from factor_search.factors import Factors
from factor_search.search.strategies.contract import Check, Generation, Result, entropy, no_check
from factor_search.search.strategies.curve import Curve

ATTEMPTS = 50
"""Draws for each new candidate; a generation stays smaller if none of them is new."""


class CurveStudy:
    """Proposes the closed forms first, then one population after another from an Optuna sampler.

    In the study, a closed form is represented by the vector whose curve is closest to it.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        curve: Curve,
        seeds: Sequence[Factors],
        population: int,
        objectives: int = 1,
        check: Check = no_check,
    ) -> None:
        """Create the study; with two objectives, the second is the loss within the original length."""
        self._check = check
        self._curve = curve
        self._population = population
        self._objectives = objectives
        space = curve.space
        self._seeds = list(dict.fromkeys(space.factors(space.project(factors)) for factors in seeds))
        self._seen = set(self._seeds)
        self._distributions = distributions(curve)
        self._trials: list[optuna.Trial] = []
        self._first = True
        with _quiet():
            self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)

    def ask(self) -> Generation:
        """Return the closed forms first, then the new candidates that the sampler draws."""
        if self._first:
            self._first = False
            for factors in self._seeds:
                self._study.enqueue_trial(self._params(factors))
            self._trials = [self._study.ask(self._distributions) for _ in self._seeds]
            for trial in self._trials:
                trial.relative_params  # noqa: B018  NSGA-II adds a trial to its population when it samples it
            return Generation(tuple(self._seeds))
        self._trials, proposed = [], list[Factors]()
        for _ in range(self._population * ATTEMPTS):
            if len(proposed) == self._population:
                break
            self._check()
            trial = self._study.ask(self._distributions)
            factors = self._curve.factors(np.array([trial.params[name] for name in self._distributions]))
            if factors in self._seen:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            self._seen.add(factors)
            self._trials.append(trial)
            proposed.append(factors)
        return Generation(tuple(proposed))

    def tell(self, results: Sequence[Result]) -> None:
        """Complete the trials; those that failed or were not evaluated count as failed."""
        for trial, result in zip_longest(self._trials, results):
            if result is None or not math.isfinite(result.loss):
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                short = result.loss if result.short_loss is None else result.short_loss
                self._study.tell(trial, [result.loss, short][: self._objectives])

    def _params(self, factors: Factors) -> dict[str, float]:
        return dict(zip(self._distributions, self._curve.vector(factors).tolist(), strict=True))


def distributions(curve: Curve) -> dict[str, BaseDistribution]:
    """Return one Optuna parameter for each number of a vector, in the same order."""
    return {f"x{n}": FloatDistribution(low, high) for n, (low, high) in enumerate(curve.bounds.tolist())}


def derived_seed(seed: int) -> int:
    """Derive a seed of 32 bits, which is what Optuna's samplers take."""
    return int(np.random.SeedSequence(entropy(seed)).generate_state(1)[0])


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
