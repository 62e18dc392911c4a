"""What is stored of a generation's candidates: those that need no worker, and how far the others are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race, rungs
from factor_search.measure.stored import settled
from factor_search.text.samples import SampleSet
from storage.evaluations import Candidate, EvaluationStore


@dataclass
class KnownResults:
    """Evaluations by the candidates' keys."""

    stored: dict[str, Evaluation] = field(default_factory=dict)
    """Settled."""
    cut: dict[str, Evaluation] = field(default_factory=dict)
    """Settled, but a part of a longer evaluation: itself not stored yet."""
    begun: dict[str, Evaluation] = field(default_factory=dict)
    """On the first documents, to go on from."""


def known_results(
    store: EvaluationStore,
    job_id: str,
    places: Sequence[Candidate],
    samples: SampleSet,
    race: Race | None,
    key_of: Callable[[Candidate, int], str],
) -> KnownResults:
    """How the candidates of a generation stand.

    Args:
        store: of all jobs.
        job_id: whose candidates they are.
        places: the candidates, with the keys of their evaluations on all documents.
        samples: all documents.
        race: in which they are evaluated.
        key_of: of a candidate that was stopped after so many documents.

    Raises:
        DatabaseError: the database cannot be reached.
    """
    total = len(samples.samples)
    keys = {
        place.key: {count: key_of(place, count) for count in rungs(total) if race} | {total: place.key}
        for place in places
    }
    known = store.lookup([key for by_count in keys.values() for key in by_count.values()], job_id)
    earlier = _earlier(store, job_id, places) if race else {}
    result = KnownResults()
    for place in places:
        if place.key in earlier:
            result.stored[place.key] = earlier[place.key]
            continue
        evaluations = {count: known[key] for count, key in keys[place.key].items() if key in known}
        outcome, on_the_way = settled(race, evaluations, total, partial(key_of, place))
        if outcome is not None:
            (result.stored if outcome.key in known else result.cut)[place.key] = outcome
        elif on_the_way is not None:
            result.begun[place.key] = on_the_way
    return result


def _earlier(store: EvaluationStore, job_id: str, places: Sequence[Candidate]) -> dict[str, Evaluation]:
    """What the candidates came to when their job was driven before.

    In a race that does not follow from what is stored now: other jobs may have gone on with a candidate since.
    """
    if not places:
        return {}
    first = places[0]
    rows = store.of_job(job_id, part=first.part, stage=first.stage, after=first.number - 1, limit=len(places))
    by_number = {place.number: place for place in places}
    return {
        by_number[row.number].key: row.evaluation
        for row in rows
        if row.evaluation is not None and row.number in by_number and row.factors == by_number[row.number].factors
    }
