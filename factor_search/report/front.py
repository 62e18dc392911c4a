"""The trade between long and short texts: candidates that no other one beats at both."""

from typing import Any

from factor_search.files.canonical_json import finite
from factor_search.measure.evaluation import OK, Evaluation
from factor_search.measure.statistics import summarise
from factor_search.search.loop import SearchState

MOST = 30
"""Points of a front that are kept, evenly over its length, both ends included."""


def front(state: SearchState, original_length: int) -> list[dict[str, Any]]:
    """The Pareto front as JSON.

    Returns:
        Points with the ``perplexity`` at the target length and the ``short_perplexity`` within the original one, both
        on the search documents, and the factors; see :func:`points`.
    """
    return [
        {
            "perplexity": finite(evaluation.summary.perplexity),
            "short_perplexity": finite(summarise([short], [1]).perplexity),
            "factors": evaluation.factors.as_json(),
        }
        for evaluation, short in points(state, original_length)
    ]


def points(state: SearchState, original_length: int) -> list[tuple[Evaluation, float]]:
    """The Pareto front of the candidates that were evaluated on all search documents.

    Args:
        state: of the search.
        original_length: in tokens, up to which texts are short.

    Returns:
        Evaluations with their mean loss in short texts, the best at the target length first. Empty where short texts
        were not measured.
    """
    known = [
        (evaluation, short)
        for evaluation in state.candidates.values()
        if evaluation.outcome == OK and (short := _short_loss(state, evaluation, original_length)) is not None
    ]
    known.sort(key=lambda point: (point[0].loss, point[1]))
    kept: list[tuple[Evaluation, float]] = []
    for point in known:
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    if len(kept) > MOST:
        kept = [kept[round(place * (len(kept) - 1) / (MOST - 1))] for place in range(MOST)]
    return kept


def _short_loss(state: SearchState, evaluation: Evaluation, original_length: int) -> float | None:
    losses = state.short_losses(evaluation, original_length)
    return summarise(losses, [1] * len(losses)).loss if losses else None
