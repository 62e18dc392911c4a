"""Decides from stored evaluations whether a candidate's result in a race is known, or where to continue it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from factor_search.measure.evaluation import PRUNED, Evaluation
from factor_search.measure.race import Race, rungs


def settled(
    race: Race | None, stored: Mapping[int, Evaluation], total: int, key_of: Callable[[int], str]
) -> tuple[Evaluation | None, Evaluation | None]:
    """Look up a candidate's result in a race.

    Args:
        race: the race, or None to evaluate on all documents.
        stored: stored evaluations by number of documents; the one under ``total`` may have any outcome.
        total: number of search documents.
        key_of: returns the address of the candidate if it is stopped after so many documents.

    Returns:
        The result, or None if it is not known; and the evaluation from which to continue, or None.
    """
    complete = stored.get(total)
    measured = {count: evaluation for count, evaluation in stored.items() if evaluation.losses}
    if race is None or not measured:
        return complete, None
    longest = measured[max(measured)]
    for count in rungs(total):
        at_rung = measured.get(count, longest)
        if len(at_rung.losses) < count:
            break
        # This comes before the complete evaluation, which may have failed on a document behind this rung.
        if race.stops(at_rung.losses[:count], total):
            return at_rung if len(at_rung.losses) == count else cut(at_rung, count, key_of(count)), None
    return (complete, None) if complete is not None else (None, longest)


def cut(evaluation: Evaluation, count: int, key: str) -> Evaluation:
    """Return an evaluation as if it had been stopped after ``count`` documents."""
    share = sum(evaluation.tokens[:count]) / sum(evaluation.tokens)
    return replace(
        evaluation,
        key=key,
        outcome=PRUNED,
        losses=evaluation.losses[:count],
        tokens=evaluation.tokens[:count],
        losses_at={length: losses[:count] for length, losses in evaluation.losses_at.items()},
        seconds=evaluation.seconds * share,
    )
