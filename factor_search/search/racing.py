"""Racing: candidates are compared in pairs, document by document, and those that will not win are stopped.

Documents differ in loss far more than two candidates differ on the same document.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from factor_search.measure.evaluation import OK, PRUNED, Evaluation
from factor_search.measure.race import Race, mean_difference, rungs

NEIGHBOURS = 12
"""Complete evaluations, closest to the rival, from which the spread of paired differences is estimated."""
NEIGHBOURS_NEEDED = 4


@dataclass
class Referee:
    """Sets the race for each generation from the complete evaluations so far."""

    total: int
    """Documents that candidates are compared on."""
    error_rate: float | None
    """Chance that a candidate which would beat the rival is stopped; None never stops one for its losses."""
    complete: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None
    pruned: bool = False
    """Whether there are candidates that can be continued."""

    def saw(self, evaluation: Evaluation) -> None:
        """Learn from an evaluation; only complete ones count."""
        self.pruned = self.pruned or evaluation.outcome == PRUNED
        if evaluation.outcome == OK:
            self.complete.append(evaluation)
            if self.best is None or evaluation.loss < self.best.loss:
                self.best = evaluation

    def race(self, documents: int | None) -> Race | None:
        """The race for candidates to be evaluated on at most so many documents.

        None if none can be stopped, nor was one before that could be continued.
        """
        limit = min(documents or self.total, self.total)
        margins = self._margins()
        if limit == self.total and not margins and not self.pruned:
            return None
        rival = self.best.losses if self.best is not None and margins else ()
        return Race(documents=limit, rival=rival, margins=margins)

    def estimate(self, evaluation: Evaluation) -> float:
        """The loss a candidate would have on all documents, by its paired difference to the best on those it has."""
        if evaluation.outcome != PRUNED:
            return evaluation.loss
        if self.best is None:
            return evaluation.summary.loss
        return self.best.loss + mean_difference(evaluation.losses, self.best.losses)

    def _margins(self) -> tuple[tuple[int, float], ...]:
        """By how much a candidate must lag behind after each rung for its overall loss to be higher, but for an error.

        With k of n documents known, the mean difference over all n is that over the k with variance
        tau^2 (1 / k - 1 / n), where tau is the deviation of paired differences between documents: sampling without
        replacement. tau is pooled over evaluations close to the best one, since differences between close candidates
        vary little, and it is those that must not be stopped wrongly.
        """
        if self.error_rate is None or self.best is None or len(self.complete) <= NEIGHBOURS_NEEDED or self.total < 2:
            return ()
        best = self.best
        close = sorted(self.complete, key=lambda evaluation: evaluation.loss)[1 : NEIGHBOURS + 1]
        variances = [_variance([a - b for a, b in zip(one.losses, best.losses, strict=True)]) for one in close]
        deviation = math.sqrt(sum(variances) / len(variances))
        looks = list(rungs(self.total))
        critical = student_quantile(1 - self.error_rate / len(looks), self.total - 1)  # it may be stopped at each
        return tuple((count, critical * deviation * math.sqrt(1 / count - 1 / self.total)) for count in looks)


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by expansion around the normal one (Abramowitz and Stegun, 26.7.5)."""
    z, n = NormalDist().inv_cdf(probability), degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, start=1))


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
