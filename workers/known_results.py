"""What is already stored of a generation's candidates: which need no worker, and where the others continue."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import partial

from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race, rungs
from factor_search.measure.stored import settled
from factor_search.text.samples import SampleSet
from storage.evaluations import Candidate, EvaluationStore


@dataclass
class KnownResults:
    """Stored evaluations of a generation's candidates, by key of the complete evaluation."""

    stored: dict[str, Evaluation] = field(default_factory=dict)
    """The outcome, stored."""
    cut: dict[str, Evaluation] = field(default_factory=dict)
    """The outcome, cut from a longer stored evaluation and not yet stored itself."""
    partial: dict[str, Evaluation] = field(default_factory=dict)
    """An evaluation on the first documents, to continue from."""


def known_results(
    store: EvaluationStore,
    job_id: str,
    proposals: Sequence[Candidate],
    samples: SampleSet,
    race: Race | None,
    key_of: Callable[[Candidate, int | None], str],
    earlier_key_of: Callable[[Candidate, int | None], str | None] = lambda proposal, documents: None,
) -> KnownResults:
    """What is known of the candidates of a generation.

    Args:
        store: the evaluations of all jobs.
        job_id: the job of the candidates.
        proposals: the candidates, with the keys of their evaluations on all documents.
        samples: all documents.
        race: decides when a candidate is stopped; None if all see all documents.
        key_of: gives the key of a candidate's evaluation on a number of documents; None is all.
        earlier_key_of: gives the key under which an earlier run of the job may have stored it, or None.

    Raises:
        DatabaseError: the database cannot be reached.
    """
    total = len(samples.samples)
    keys = {
        proposal.key: {count: key_of(proposal, count) for count in rungs(total) if race} | {total: proposal.key}
        for proposal in proposals
    }
    known = store.lookup([key for by_count in keys.values() for key in by_count.values()], job_id)
    by_earlier_key = {
        former: key
        for proposal in proposals
        for count, key in keys[proposal.key].items()
        if (former := earlier_key_of(proposal, None if count == total else count)) is not None
    }
    if by_earlier_key:
        own = store.lookup(by_earlier_key, job_id, own=True)
        known = {by_earlier_key[key]: evaluation for key, evaluation in own.items()} | known
    acceptable = {key for by_count in keys.values() for key in by_count.values()} | by_earlier_key.keys()
    further = _earlier(store, job_id, proposals, acceptable) if race else {}
    stored = {evaluation.key for evaluation in known.values()}
    result = KnownResults()
    for proposal in proposals:
        if proposal.key in further:
            result.stored[proposal.key] = further[proposal.key]
            continue
        evaluations = {count: known[key] for count, key in keys[proposal.key].items() if key in known}
        outcome, on_the_way = settled(race, evaluations, total, partial(key_of, proposal))
        if outcome is not None:
            (result.stored if outcome.key in stored else result.cut)[proposal.key] = outcome
        elif on_the_way is not None:
            result.partial[proposal.key] = on_the_way
    return result


def _earlier(
    store: EvaluationStore, job_id: str, proposals: Sequence[Candidate], acceptable: Container[str]
) -> dict[str, Evaluation]:
    """The outcomes that the candidates had in an earlier run of their job, on what is evaluated now.

    In a race they do not follow from what is stored now, because other jobs may have continued a candidate since.
    """
    if not proposals:
        return {}
    first = proposals[0]
    rows = store.of_job(job_id, part=first.part, after=first.number - 1, limit=len(proposals))
    by_number = {proposal.number: proposal for proposal in proposals}
    return {
        by_number[row.number].key: row.evaluation
        for row in rows
        if row.evaluation is not None
        and row.evaluation.key in acceptable
        and row.number in by_number
        and row.factors == by_number[row.number].factors
    }
