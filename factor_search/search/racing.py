"""Racing stops candidates that are unlikely to become the best before their last search document.

Candidates are compared by paired differences, since the loss differs far more between two documents than between two
candidates on the same document.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from factor_search.measure.evaluation import OK, PRUNED, Evaluation
from factor_search.measure.race import Race, mean_difference, rungs
from factor_search.measure.statistics import student_quantile

NEIGHBOURS = 12
"""Number of the best complete evaluations from which the spread of paired differences is estimated."""
NEIGHBOURS_NEEDED = 4
"""Complete evaluations besides the best that racing needs."""


@dataclass
class Referee:
    """Sets the race for each generation from the complete evaluations so far."""

    total: int
    """Number of search documents."""
    error_rate: float | None
    """Probability that a candidate better than the best is stopped; None stops no candidate for its losses."""
    complete: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None
    """The complete evaluation with the lowest loss."""
    pruned: bool = False
    """Whether there are pruned evaluations, which can be continued."""

    def saw(self, evaluation: Evaluation) -> None:
        """Add an evaluation; only complete ones set margins."""
        self.pruned = self.pruned or evaluation.outcome == PRUNED
        if evaluation.outcome == OK:
            self.complete.append(evaluation)
            if self.best is None or evaluation.loss < self.best.loss:
                self.best = evaluation

    def race(self, documents: int | None) -> Race | None:
        """Return the race for candidates to be evaluated on at most so many documents.

        It is None if no candidate can be stopped, and none was stopped before and could be continued.
        """
        limit = min(documents or self.total, self.total)
        margins = self._margins()
        if limit == self.total and not margins and not self.pruned:
            return None
        rival = self.best.losses if self.best is not None and margins else ()
        return Race(documents=limit, rival=rival, margins=margins)

    def estimate(self, evaluation: Evaluation) -> float:
        """Estimate a candidate's loss on all documents by its paired difference to the best evaluation."""
        if evaluation.outcome != PRUNED:
            return evaluation.loss
        if self.best is None:
            return evaluation.summary.loss
        return self.best.loss + mean_difference(evaluation.losses, self.best.losses)

    def _margins(self) -> tuple[tuple[int, float], ...]:
        """Compute, for each number of documents, by how much a candidate must be worse than the best to be stopped.

        If k of n documents are known, the mean difference over all n documents equals that over the k with variance
        tau^2 (1 / k - 1 / n) (sampling without replacement), where tau is the standard deviation of the paired
        differences between documents. tau is pooled over evaluations close to the best one: their differences vary
        little, and they are the ones that must not be stopped wrongly.
        """
        if self.error_rate is None or self.best is None or len(self.complete) <= NEIGHBOURS_NEEDED or self.total < 2:
            return ()
        best = self.best
        close = sorted(self.complete, key=lambda evaluation: evaluation.loss)[1 : NEIGHBOURS + 1]
        variances = [_variance([a - b for a, b in zip(one.losses, best.losses, strict=True)]) for one in close]
        deviation = math.sqrt(sum(variances) / len(variances))
        looks = list(rungs(self.total))
        critical = student_quantile(
            1 - self.error_rate / len(looks), self.total - 1
        )  # Bonferroni: one test per number of documents
        return tuple((count, critical * deviation * math.sqrt(1 / count - 1 / self.total)) for count in looks)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
