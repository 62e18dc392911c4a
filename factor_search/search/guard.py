"""A limit on what factors cost in short texts: candidates beyond it count as much worse than they are.

Texts up to the original length need no rescaling, and an engine that uses the same factors for all inputs harms them.
The cost is the loss on the first tokens of the documents, up to the original length, minus that of the untouched model.
Every evaluation measures it, since tokens see none that follow.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from factor_search.errors import SearchFailedError
from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, Evaluation, Evaluator
from factor_search.measure.request import Measured
from factor_search.measure.statistics import paired_difference
from factor_search.text.samples import SampleSet

PENALTY = 50.0
"""Nats of loss for each nat beyond the limit: several times what a nat of short texts wins at the target length, near
usual limits. A much larger one would hide the way to the limit from the far side: the untouched model, which holds any,
would be better than all that is a little beyond."""
ROOM = (1.0, 0.9, 0.8, 0.65, 0.5)
"""Shares of the limit that finalists keep."""
PART: Measured = "short_window"
"""The search documents cut to the original length, on which the untouched model is measured once."""


@dataclass(frozen=True)
class Guard:
    """A limit, and what it is relative to."""

    length: int
    """The original length in tokens."""
    at_most: float
    """Nats per token."""
    reference: tuple[float, ...]
    """Loss of the untouched model on the first tokens of each search document."""

    @classmethod
    def of(cls, at_most: float, untouched: Factors, length: int, evaluator: Evaluator, documents: SampleSet) -> "Guard":
        """Measure the untouched model on the search documents, cut to the original length.

        Raises:
            SearchFailedError: it gives no finite loss there.
        """
        short = SampleSet(PART, documents.cut(length).samples)
        (evaluation,) = evaluator.evaluate_all([untouched], short)
        if evaluation.outcome != OK:
            raise SearchFailedError(
                "short_window: the untouched model gives no finite loss on the first tokens of the search documents"
            )
        return cls(length, at_most, evaluation.losses)

    def judged(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with a penalty on its losses if it is beyond the limit, or within its standard error of it."""
        short = evaluation.losses_at.get(self.length, ())
        if not short:
            return evaluation
        beyond = cost(short, self.reference[: len(short)], self.length).upper - self.at_most
        if beyond <= 0:
            return evaluation
        return replace(evaluation, losses=tuple(loss + PENALTY * beyond for loss in evaluation.losses))

    def with_room(self, evaluations: Iterable[Evaluation]) -> list[Factors]:
        """The candidates with the lowest loss that leave more and more room below the limit; complete ones only."""
        costs = [
            (cost(one.losses_at[self.length], self.reference, self.length).upper, one.summary.loss, one.factors)
            for one in evaluations
            if one.outcome == OK and len(one.losses_at.get(self.length, ())) == len(self.reference)
        ]
        found = []
        for share in ROOM:
            held = [(loss, factors) for upper, loss, factors in costs if upper <= share * self.at_most]
            found += [min(held, key=itemgetter(0))[1]] if held else []
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Cost:
    """Loss in short texts beyond that of the untouched model, nats per token."""

    mean: float
    error: float
    """Standard error over the documents; NaN for a single one."""

    @property
    def upper(self) -> float:
        """One standard error above the mean, so that most winners hold the limit on other documents too."""
        return self.mean + (0.0 if math.isnan(self.error) else self.error)


def cost(short: Sequence[float], reference: Sequence[float], length: int) -> Cost:
    """What factors cost in short texts.

    Args:
        short: mean loss on the first tokens of each document.
        reference: the same of the untouched model.
        length: tokens in each.
    """
    return Cost(*paired_difference(short, reference, [length - 1] * len(short)))


def within(
    guard: Guard,
    evaluations: Mapping[str, Evaluation],
    reference: Evaluation,
    on_search: Mapping[str, Evaluation | None],
) -> list[str]:
    """The names of those that hold the limit on other documents, or else the one that is least beyond it.

    The documents of the search count too: the fewer there are, the larger is the standard error, and the more of the
    limit would be left unused.

    Args:
        guard: the limit.
        evaluations: on the validation documents, by name.
        reference: of the untouched model there.
        on_search: on the search documents, where there is one.
    """
    known: dict[str, float] = {}
    for name, evaluation in evaluations.items():
        short, untouched = list(evaluation.losses_at.get(guard.length, ())), reference.losses_at.get(guard.length, ())
        if not short or len(short) != len(untouched):
            continue
        searched = on_search.get(name)
        more = () if searched is None else searched.losses_at.get(guard.length, ())
        known[name] = cost([*short, *more], [*untouched, *guard.reference[: len(more)]], guard.length).upper
    held = [name for name, upper in known.items() if upper <= guard.at_most]
    return held or sorted(known, key=lambda name: known[name])[:1] or list(evaluations)
