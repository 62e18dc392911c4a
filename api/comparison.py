"""Jobs side by side, and paired differences on the held-out documents that two of them share."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.page_schemas import Compared, Comparison, Pair
from api.problems import RefusedError
from api.records import Records
from api.schemas import finite
from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, Evaluation
from factor_search.measure.statistics import paired_difference
from storage.jobs import SEARCHES, Job
from storage.states import JobState

MOST_EVALUATIONS = 1000
"""Of one job on its held-out documents: the closed forms, known factors with a name, and the winner."""
SAME = 1e-6
"""Relative difference of two losses of the same factors on the same text, on other devices at most."""


@dataclass(frozen=True)
class _HeldOut:
    """What a finished job measured on its held-out documents."""

    sources: Sequence[str]
    evaluations: Mapping[Factors, Evaluation]
    winner: Evaluation
    model: Any
    """Identity of its content; None if an earlier version measured it."""


def compare(stores: Records, jobs: Sequence[Job]) -> Comparison:
    """Jobs side by side.

    Raises:
        RefusedError: one of them is not a search.
    """
    for job in jobs:
        if job.kind not in SEARCHES:
            raise RefusedError(409, f"job {job.id} is not a search, so there is nothing to compare")
    reports = {job.id: stores.jobs.document(job.id, "report") for job in jobs if job.state == JobState.FINISHED}
    held_out = {job.id: _held_out(stores, job, reports.get(job.id)) for job in jobs}
    return Comparison(
        jobs=[_compared(job, reports.get(job.id)) for job in jobs],
        pairs=[_pair(one, other, held_out) for one, other in itertools.combinations(jobs, 2)],
    )


def _compared(job: Job, report: Mapping[str, Any] | None) -> Compared:
    spec, progress = job.parse_spec(), job.progress or {}
    found: Mapping[str, Any] = (report.get("results") or [{}])[0] if report else {}
    figures = {name: progress.get(name) for name in ("candidates", "tokens", "seconds", "best_perplexity")}
    return Compared(
        id=job.id,
        name=job.name,
        state=job.state,
        model=spec.model.id,
        target_length=spec.target_length,
        objective=spec.objective.kind,
        strategy=spec.strategy.kind,
        held_out=found.get("held_out"),
        standard_error=found.get("standard_error"),
        winner=found.get("is"),
        **finite(figures),
    )


def _held_out(stores: Records, job: Job, report: Mapping[str, Any] | None) -> _HeldOut | None:
    """None unless the job is finished, and its winner was measured on every document."""
    search = stores.courses.search(job.id)
    if report is None or search is None or "factors" not in report:
        return None
    rows = stores.evaluations.of_job(job.id, part="held_out", limit=MOST_EVALUATIONS)
    measured = {row.factors: row.evaluation for row in rows if row.evaluation and row.evaluation.outcome == OK}
    sources = search.prepared.get("documents", {}).get("held_out", ())
    winner = measured.get(Factors.of(**report["factors"]))
    if winner is None or len(sources) != len(winner.losses):
        return None
    return _HeldOut(sources, measured, winner, (search.prepared.get("identity") or {}).get("model"))


def _pair(one: Job, other: Job, held_out: Mapping[str, _HeldOut | None]) -> Pair:
    first, second = held_out[one.id], held_out[other.id]
    named: dict[str, Any] = {"first": one.id, "second": other.id}
    nothing: dict[str, Any] = {"documents": [], "difference": None, "standard_error": None, "verified": False}
    if first is None or second is None:
        missing = one if first is None else other
        return Pair(**named, **nothing, note=f"job {missing.id} has no figures on held-out documents")
    if one.spec.get("objective") != other.spec.get("objective"):
        return Pair(**named, **nothing, note="the objectives differ")
    shared, verified = _shared(first, second)
    if not shared:
        return Pair(**named, **nothing, note="no held-out document is the same, with as many tokens, in both")
    mean, error = paired_difference(
        [second.winner.losses[j] for _, j in shared],
        [first.winner.losses[i] for i, _ in shared],
        [first.winner.tokens[i] for i, _ in shared],
    )
    documents = [first.sources[i] for i, _ in shared]
    return Pair(
        **named, documents=documents, difference=mean, standard_error=finite(error), verified=verified, note=None
    )


def _shared(first: _HeldOut, second: _HeldOut) -> tuple[list[tuple[int, int]], bool]:
    """Places of the shared samples in both, and whether they are known to have the same text.

    They have the same source, of which they are the same sample (with needles, a document has one for each repeat), and
    as many scored tokens. If the model is the same and both jobs measured the same
    factors, such as plain RoPE, a document counts only if these had the same loss on it.
    """
    places = {sample: j for j, sample in enumerate(_counted(second.sources))}
    pairs = [(i, places[sample]) for i, sample in enumerate(_counted(first.sources)) if sample in places]
    pairs = [(i, j) for i, j in pairs if first.winner.tokens[i] == second.winner.tokens[j]]
    common = [factors for factors in first.evaluations if factors in second.evaluations]
    if first.model is None or first.model != second.model or not common:
        return pairs, False
    losses = [(first.evaluations[factors].losses, second.evaluations[factors].losses) for factors in common]
    same = [(i, j) for i, j in pairs if all(math.isclose(one[i], other[j], rel_tol=SAME) for one, other in losses)]
    return same, True


def _counted(sources: Sequence[str]) -> list[tuple[str, int]]:
    """Each source with how often it has occurred before."""
    seen: Counter[str] = Counter()
    counted = []
    for source in sources:
        counted.append((source, seen[source]))
        seen[source] += 1
    return counted
