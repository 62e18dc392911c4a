"""A candidate as an Optuna trial: what its state, value, parameters and attributes are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, PRUNED, Evaluation
from factor_search.measure.statistics import summarise
from storage.evaluations import CandidateRow
from storage.states import CandidateState

Number = TypeVar("Number", int, float)
KNOTS = 6
"""So many of the rescale factors are parameters: the dashboard draws and ships every one of every trial."""
WAITING = "waiting"
"""What a running candidate shows once its job is paused."""
CANDIDATE = "candidate"
"""The attribute by which a trial is found again."""


@dataclass(frozen=True, kw_only=True)
class TrialSpace:
    """The parameters that all trials of a study have, with their ranges."""

    knots: tuple[int, ...]
    """Rotary pairs, evenly spaced from the first to the last."""
    rescale_factors: tuple[float, float]
    initial_tokens: tuple[int, int]
    attention_factor: tuple[float, float]

    @classmethod
    def of(cls, prepared: dict[str, Any], pairs: int) -> "TrialSpace":
        """The space of a stage; of what it does not say, a range of one value."""
        space = prepared.get("space", {})
        tokens, attention = space.get("initial_tokens") or [0], space.get("attention_factors") or [1.0]
        knots = min(KNOTS, pairs)
        return cls(
            knots=tuple(round(k * (pairs - 1) / max(knots - 1, 1)) for k in range(knots)),
            rescale_factors=(space.get("lower", 1.0), space.get("upper", 1.0)),
            initial_tokens=(min(tokens), max(tokens)),
            attention_factor=(min(attention), max(attention)),
        )

    def params(self, factors: Factors) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Values and distributions; what has only one value in the space is left out.

        A seed may lie outside the space: its own distribution is wider then, which Optuna holds for compatible.
        """
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        digits = len(str(len(factors.rescale_factors) - 1))
        for pair in self.knots:
            name, value = f"lambda[{pair:0{digits}}]", factors.rescale_factors[pair]
            params[name] = value
            distributions[name] = FloatDistribution(*_around(value, self.rescale_factors), log=True)
        if self.initial_tokens[0] < self.initial_tokens[1]:
            params["initial_tokens"] = factors.initial_tokens
            distributions["initial_tokens"] = IntDistribution(*_around(factors.initial_tokens, self.initial_tokens))
        if self.attention_factor[0] < self.attention_factor[1]:
            params["attention_factor"] = factors.attention_factor
            bounds = _around(factors.attention_factor, self.attention_factor)
            distributions["attention_factor"] = FloatDistribution(*bounds)
        return params, distributions


def trial_of(row: CandidateRow, shown: str, space: TrialSpace) -> FrozenTrial:
    """The trial of a candidate as it is now; number and id are for Optuna to give."""
    state, value = state_of(row, shown)
    params, distributions = space.params(row.factors)
    intermediate = perplexities_of(row)
    attributes = {
        CANDIDATE: row.number,
        "generation": row.generation,
        "rescale_factors": ", ".join(f"{factor:.6g}" for factor in row.factors.rescale_factors),
    }
    for name in ("initial_tokens", "attention_factor"):
        if name not in params:
            attributes[name] = getattr(row.factors, name)
    start, end = _times(row)
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=value,
        datetime_start=None if state == TrialState.WAITING else start,
        datetime_complete=end if state.is_finished() else None,
        params=params,
        distributions=distributions,
        user_attrs=attributes | result_attributes(row, shown),
        system_attrs={},
        intermediate_values=dict(enumerate(intermediate)),
    )


def state_of(row: CandidateRow, shown: str) -> tuple[TrialState, float | None]:
    """Optuna's name for a candidate's state, and the value that goes with it: perplexity, to be minimised."""
    if shown == CandidateState.DONE and row.evaluation is not None:
        value = _perplexity(row.evaluation)
        if row.evaluation.outcome == PRUNED:
            return TrialState.PRUNED, value
        return (TrialState.FAIL, None) if value is None else (TrialState.COMPLETE, value)
    if shown == CandidateState.WITHDRAWN:
        so_far = perplexities_of(row)
        return TrialState.PRUNED, so_far[-1] if so_far else None
    states = {CandidateState.RUNNING: TrialState.RUNNING, WAITING: TrialState.WAITING}
    return states.get(shown, TrialState.FAIL), None


def result_attributes(row: CandidateRow, shown: str) -> dict[str, Any]:
    """What is only known when a candidate is done with, in one way or another."""
    if shown in (CandidateState.RUNNING, WAITING):
        return {}
    if row.evaluation is None or shown != CandidateState.DONE:
        return {"outcome": shown}
    known: dict[str, Any] = {"outcome": row.evaluation.outcome, "worker": row.worker}
    if row.evaluation.outcome == PRUNED:
        known["documents"] = len(row.evaluation.losses)
    if row.reused:
        known["reused"] = True
    if row.error:
        known["error"] = row.error[:300]
    return known


def perplexities_of(row: CandidateRow) -> list[float]:
    """Running perplexity after each document, as far as all are finite: the last is that of the evaluation.

    While a candidate runs, the documents' lengths are not known here, and they weigh alike.
    """
    losses: Sequence[float] = row.losses_so_far or ()
    tokens: Sequence[int] = [1] * len(losses)
    if row.state == CandidateState.DONE and row.evaluation is not None and row.evaluation.losses:
        losses, tokens = row.evaluation.losses, row.evaluation.tokens
    running: list[float] = []
    for count in range(1, len(losses) + 1):
        perplexity = summarise(losses[:count], tokens[:count]).perplexity
        if not math.isfinite(perplexity):
            break
        running.append(perplexity)
    return running


def _perplexity(evaluation: Evaluation) -> float | None:
    """On the documents evaluated."""
    value = evaluation.summary.perplexity if evaluation.outcome in (OK, PRUNED) else math.inf
    return value if math.isfinite(value) else None


def _times(row: CandidateRow) -> tuple[datetime, datetime]:
    """Start and end, naive and local, as Optuna wants them; a result known before took no time now."""
    if row.evaluation is None or row.recorded_at is None or row.reused:
        now = datetime.now()
        return now, now
    return datetime.fromtimestamp(row.recorded_at - row.evaluation.seconds), datetime.fromtimestamp(row.recorded_at)


def _around(value: Number, bounds: tuple[Number, Number]) -> tuple[Number, Number]:
    return min(value, bounds[0]), max(value, bounds[1])
