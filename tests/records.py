"""Candidates and evaluations as a coordinator would record them."""

from collections.abc import Sequence

from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, PRUNED, Evaluation
from storage.evaluations import Candidate, Computed


def candidate(
    number: int, part: str = "search", *, lambdas: Sequence[float] | None = None, initial_tokens: int = 0
) -> Candidate:
    """The one proposed so-many-th, four to a generation."""
    factors = Factors.of(lambdas or [1.0, 1.0 + number / 7], initial_tokens, 1.1)
    key = f"{part}{number}".rjust(64, "0")
    return Candidate(part=part, number=number, generation=number // 4, key=key, factors=factors)


def computed(of: Candidate, outcome: str = OK, losses: Sequence[float] = (0.1, 1 / 3), error: str = "") -> Computed:
    """Its evaluation on as many documents as losses."""
    fine = outcome in (OK, PRUNED)
    evaluation = Evaluation(
        key=of.key,
        factors=of.factors,
        part=of.part,
        outcome=outcome,
        losses=tuple(losses) if fine else (),
        tokens=tuple(511 - i for i in range(len(losses))) if fine else (),
        losses_at={256: tuple(loss + 0.1 for loss in losses), 512: tuple(losses)} if fine else {},
        seconds=0.25,
    )
    return Computed(evaluation=evaluation, worker="host:1", attempts=1, error=None if fine else error or "it failed")
