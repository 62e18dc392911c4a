"""What stored evaluations of a candidate say about it in a race, and which of them can be continued."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from factor_search.measure.evaluation import PRUNED, Evaluation
from factor_search.measure.race import Race, rungs


def settled(
    race: Race | None, stored: Mapping[int, Evaluation], total: int, key_of: Callable[[int], str]
) -> tuple[Evaluation | None, Evaluation | None]:
    """What stored evaluations of a candidate say about it in a race.

    Args:
        race: None to evaluate on all documents.
        stored: by number of documents; under ``total`` whatever came of all of them.
        total: documents that candidates are compared on.
        key_of: the address of a candidate that was stopped after so many documents.

    Returns:
        The outcome if it is settled, else None; then, if there is one, the evaluation to continue from.
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
        # before what came of all documents: a candidate may have failed only when it was continued later
        if race.stops(at_rung.losses[:count], total):
            return at_rung if len(at_rung.losses) == count else cut(at_rung, count, key_of(count)), None
    return (complete, None) if complete is not None else (None, longest)


def cut(evaluation: Evaluation, count: int, key: str) -> Evaluation:
    """An evaluation as it would be, had it been stopped after ``count`` documents."""
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
