"""How many full evaluations a search usually spends for its candidates, measured: ``python -m bench.shares``.

A full evaluation is one candidate on all search documents. Without races, every strategy but ``auto`` evaluates each
candidate on all of them.
"""

import itertools
import math

from factor_search.spec import EvolutionSpec, JobSpec

AUTO = {
    1: ((10, 1.0), (200, 1.0)),
    2: ((10, 0.50), (25, 0.68), (50, 0.84), (100, 0.92), (200, 0.96)),
    4: ((10, 0.25), (25, 0.34), (50, 0.62), (100, 0.81), (200, 0.87)),
    8: ((10, 0.12), (25, 0.17), (50, 0.30), (100, 0.61), (200, 0.49)),
}
"""Of ``auto``, by search documents and candidates: it begins on one document, and races. Other models spent 58 to 130
full evaluations on 200 candidates with eight documents (docs/experiments.md), so a third more or less is usual."""
RACED = ((64, 1.0), (100, 0.98), (200, 0.63))
"""Of others with races: the first generation has no rival. The last is the mean of evolution on two models, which spent
152 and 98 full evaluations on 200 candidates (docs/experiments.md)."""
USUAL_CANDIDATES = 200
"""Where only ``no_improvement`` ends a search."""
GENERATIONS = {"auto": 4, "evolution": 32, "cma": 8, "tpe": 8, "nsga2": 24, "random": 16}
"""Candidates that may be evaluated at the same time."""


def usual_share(spec: JobSpec, candidates: float) -> float:
    """Return the full evaluations for each candidate.

    Args:
        spec: the search.
        candidates: how many it has.
    """
    if spec.racing_error_rate is None or spec.data.search_documents < 2:
        return 1.0
    if spec.strategy.kind != "auto":
        return _between(RACED, candidates)
    documents = min(spec.data.search_documents, max(AUTO))
    curve = [(count, _between(table, candidates)) for count, table in AUTO.items()]
    return _between(tuple(curve), documents)


def most_candidates(spec: JobSpec) -> float:
    """Return how many candidates the budget and the strategy allow; infinite if neither says."""
    allowed = math.inf if spec.budget.candidates is None else float(spec.budget.candidates)
    if isinstance(spec.strategy, EvolutionSpec):
        bred = spec.strategy.mutants + spec.strategy.crossovers
        allowed = min(allowed, spec.strategy.population + bred * spec.strategy.generations)
    return allowed


def at_a_time(spec: JobSpec) -> int:
    """Return how many candidates of a generation may be evaluated at the same time."""
    return int(getattr(spec.strategy, "population", None) or GENERATIONS[spec.strategy.kind])


def _between(table: tuple[tuple[int, float], ...], count: float) -> float:
    """Interpolate over the logarithm of the count; beyond the table its ends hold."""
    for (low, first), (high, second) in itertools.pairwise(table):
        if count <= high:
            way = max(math.log(max(count, 1) / low), 0.0) / math.log(high / low)
            return first + way * (second - first)
    return table[-1][1]
