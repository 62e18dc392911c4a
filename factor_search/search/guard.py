"""A limit on what factors cost in short texts: candidates beyond it count as much worse than they are.

Texts up to the original length need no rescaling, and an engine that uses the same factors for all inputs harms them.
The cost is the loss in windows of the original length, evenly over the documents, minus that of the untouched model.
The first window alone would be cheaper, since every evaluation measures it; but documents differ so much in it that
winners within the limit on eight documents are beyond it on eight others.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from factor_search.errors import SearchFailedError
from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OK, PRUNED, Evaluation, Evaluator
from factor_search.measure.statistics import paired_difference, student_quantile
from factor_search.search.short_texts import Windows
from factor_search.text.samples import SampleSet

PENALTY = 2.0
"""Nats of loss for being beyond the limit by as much as the limit itself (of 0.01 nats: 200 for each nat beyond), which
is about what the untouched model lacks at the target length. A much larger one would hide the way to the limit from the
far side: the untouched model, which holds any, would be better than all that is a little beyond."""
LEAST = 0.001
"""Nats; limits below count as this one for the penalty."""
ROOM = (1.15, 1.0, 0.85, 0.7, 0.5)
"""Shares of the limit that finalists keep in the search; other documents decide whether they hold it."""
CONFIDENCE = 0.9
"""Share of winners that hold the limit on other documents."""
SEARCH_WINDOWS, OTHER_WINDOWS = 4, 16
"""Windows of a document at most: for all candidates of a search, and where finalists are chosen and measured."""


@dataclass(frozen=True)
class Cost:
    """Loss in short texts beyond that of the untouched model, nats per token."""

    mean: float
    deviation: float
    """Standard deviation of the documents; 0 for a single one, of which it is not known."""

    def upper(self, here: int, there: int) -> float:
        """What other documents cost at most, in most cases.

        The mean over some documents differs from that over others by chance on both sides.

        Args:
            here: documents by which it is decided.
            there: documents on which it shall hold.
        """
        quantile = student_quantile(CONFIDENCE, here - 1) if here > 1 else 0.0
        return self.mean + quantile * self.deviation * math.sqrt(1 / here + 1 / there)


def cost(short: Sequence[float], reference: Sequence[float]) -> Cost:
    """What factors cost in short texts.

    Args:
        short: mean loss in the windows of each document.
        reference: the same of the untouched model.
    """
    count = len(short)
    mean, error = paired_difference(short, reference, [1] * count)
    return Cost(mean, 0.0 if math.isnan(error) else error * math.sqrt(count))


@dataclass
class Guard:
    """A limit, what it is relative to, and what is known of candidates."""

    at_most: float
    """Nats per token."""
    windows: Windows
    """Of the search documents."""
    deciding: int
    """Documents by which winners are chosen: those of the search and of the validation."""
    held_out: int
    """Documents on which the winner shall hold the limit."""
    reference: tuple[float, ...]
    """Mean loss of the untouched model in the windows of each search document."""
    spent: tuple[int, float]
    """Tokens scored of the untouched model, and seconds of it."""
    known: dict[Factors, tuple[float, ...]] = field(default_factory=dict)
    """Mean loss of candidates in the windows of each search document; of none, where a loss is not finite."""

    @classmethod
    def of(
        cls,
        at_most: float,
        untouched: Factors,
        length: int,
        evaluator: Evaluator,
        documents: SampleSet,
        *,
        deciding: int,
        held_out: int,
    ) -> "Guard":
        """Measure the untouched model in windows of the search documents.

        Raises:
            SearchFailedError: it gives no finite loss there.
        """
        windows = Windows.of(documents, length, SEARCH_WINDOWS)
        (evaluation,) = evaluator.evaluate_all([untouched], windows.samples)
        if evaluation.outcome != OK:
            raise SearchFailedError(
                "short_window: the untouched model gives no finite loss in windows of the search documents"
            )
        reference = windows.by_document(evaluation)
        spent = (sum(evaluation.tokens), evaluation.seconds)
        return cls(at_most, windows, deciding, held_out, reference, spent, {untouched: reference})

    def measure(self, candidates: Sequence[Factors], evaluator: Evaluator) -> Iterator[tuple[int, float]]:
        """Measure candidates in the windows of all search documents, however few they are evaluated on at first.

        On one or two documents, most of what looks beyond the limit is not, and the search would begin elsewhere.

        Yields:
            Of each candidate that was not known, the tokens scored and the seconds.
        """
        unknown = [one for one in dict.fromkeys(candidates) if one not in self.known]
        for evaluation in evaluator.evaluate_all(unknown, self.windows.samples):
            if evaluation.outcome in (OK, DIVERGED):  # others may succeed when they are tried again
                self.known[evaluation.factors] = self.windows.by_document(evaluation)
            yield sum(evaluation.tokens), evaluation.seconds

    def judged(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with a penalty on its losses as far as other documents will be beyond the limit."""
        if evaluation.outcome not in (OK, PRUNED):
            return evaluation
        short = self.known.get(evaluation.factors)
        if not short:
            return replace(evaluation, outcome=DIVERGED, losses=(), tokens=(), losses_at={})
        beyond = self._upper(short) - self.at_most
        if beyond <= 0:
            return evaluation
        penalty = PENALTY * beyond / max(self.at_most, LEAST)
        return replace(evaluation, losses=tuple(loss + penalty for loss in evaluation.losses))

    def _upper(self, short: Sequence[float]) -> float:
        return cost(short, self.reference).upper(self.deciding, self.held_out)

    def with_room(self, evaluations: Iterable[Evaluation]) -> list[Factors]:
        """The candidates with the lowest loss that leave more and more room below the limit; complete ones only."""
        costs = [
            (self._upper(short), one.summary.loss, one.factors)
            for one in evaluations
            if one.outcome == OK and (short := self.known.get(one.factors))
        ]
        found = []
        for share in ROOM:
            held = [(loss, factors) for upper, loss, factors in costs if upper <= share * self.at_most]
            found += [min(held, key=itemgetter(0))[1]] if held else []
        return list(dict.fromkeys(found))

    def within(self, short: Mapping[str, Sequence[float]], reference: Sequence[float]) -> list[str]:
        """The names of those that hold the limit on other documents, or else the one that is least beyond it.

        Args:
            short: mean losses in the windows of each document by which it is decided, by name.
            reference: of the untouched model there.
        """
        upper = {name: cost(one, reference).upper(len(one), self.held_out) for name, one in short.items()}
        held = [name for name, one in upper.items() if one <= self.at_most]
        return held or sorted(upper, key=lambda name: upper[name])[:1]
