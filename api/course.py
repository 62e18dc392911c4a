"""The course of a search, in figures that a page can draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.page_schemas import About, Course, Curve, WorkerPart
from api.records import Records
from api.schemas import finite, moment
from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, PRUNED
from factor_search.measure.statistics import summarise
from factor_search.search.space import SearchSpace
from storage.course import Search, Step
from storage.dashboard.studies import StudyPages
from storage.jobs import Job
from storage.states import CandidateState

FROM_THE_START = -1


def course(stores: Records, studies: StudyPages, job: Job, after: int, limit: int) -> Course:
    """The course of a job's search after a candidate; empty for a job that is not a search."""
    steps = stores.courses.steps(job.id, after, limit + 1)
    page, more = steps[:limit], len(steps) > limit
    search = stores.courses.search(job.id) if after == FROM_THE_START else None
    return Course(
        about=None if search is None else about(job, search, studies.path(search.study), page),
        number=[step.number for step in page],
        generation=[step.generation for step in page],
        candidate=[step.candidate for step in page],
        documents=[len(step.losses) for step in page],
        tokens=[sum(step.tokens) for step in page],
        perplexity=[_perplexity(step) for step in page],
        outcome=[step.outcome or step.state for step in page],
        next=page[-1].number if more else None,
        settled=_settled(page, after),
        outcomes=None if more else stores.courses.outcomes(job.id),
        workers=None if more else _workers(stores, job),
    )


def about(job: Job, search: Search, study: str | None, first: Sequence[Step]) -> About:
    """What a search is about.

    Args:
        job: as stored.
        search: as recorded when it began.
        study: path of its study on the dashboard.
        first: its first candidates, among which are the closed forms.
    """
    geometry = search.prepared.get("geometry", {})
    original, critical = geometry.get("original_length"), geometry.get("critical_dimension")
    forms = {name: Factors.of(**known) for name, known in search.prepared.get("closed_forms", {}).items()}
    numbers = closed_form_numbers(job.spec, search.prepared, forms, first)
    return About(
        target_length=search.target_length,
        original_length=original,
        scale=(job.spec.get("space") or {}).get("scale") or (search.target_length / original if original else None),
        critical_pair=None if critical is None else critical / 2,
        wavelengths=finite(geometry.get("wavelengths", [])),
        closed_forms=[
            Curve(name=name, number=numbers.get(name), **finite(factors.as_json())) for name, factors in forms.items()
        ],
        documents={part: len(sources) for part, sources in search.prepared.get("documents", {}).items()},
        study=study,
    )


def closed_form_numbers(
    spec: Mapping[str, Any], prepared: Mapping[str, Any], forms: Mapping[str, Factors], first: Sequence[Step]
) -> dict[str, int]:
    """The first candidate that stands for each closed form: strategies evaluate the nearest of their space.

    Args:
        spec: of the job.
        prepared: see :class:`storage.course.Search`.
        forms: the closed forms by name.
        first: candidates of the first generation, with their factors.
    """
    numbers: dict[Factors, int] = {}
    for step in first:
        if step.factors is not None:
            numbers.setdefault(step.factors, step.number)
    space = _space(spec.get("space") or {}, prepared)
    found = {}
    for name, factors in forms.items():
        nearest = factors if space is None else space.factors(space.project(factors))
        number = numbers.get(nearest, numbers.get(factors))
        if number is not None:
            found[name] = number
    return found


def _space(spec: Mapping[str, Any], prepared: Mapping[str, Any]) -> SearchSpace | None:
    """The space of a search, as far as the records have it; None where its critical dimension is not the default."""
    space, pairs = prepared.get("space"), prepared.get("geometry", {}).get("pairs")
    if space is None or pairs is None or spec.get("critical_dimension") is not None or not spec.get("step"):
        return None
    return SearchSpace(
        pairs=pairs,
        step=spec["step"],
        top_level=round((space["upper"] - 1.0) / spec["step"]),
        monotone=bool(spec.get("monotone", True)),
        initial_tokens=tuple(space["initial_tokens"]),
        attention_factors=tuple(space["attention_factors"]),
    )


def _workers(stores: Records, job: Job) -> list[WorkerPart]:
    return [
        WorkerPart(name=one.name, evaluations=one.evaluations, seconds=one.seconds, last_at=moment(one.last_at))
        for one in stores.courses.workers(job.id)
    ]


def _perplexity(step: Step) -> float | None:
    if step.outcome not in (OK, PRUNED) or not step.losses:
        return None
    perplexity: float | None = finite(summarise(step.losses, step.tokens).perplexity)
    return perplexity


def _settled(page: Sequence[Step], after: int) -> int:
    """The last of those that have ended, without one between them that a worker has yet to begin."""
    for step in page:
        if step.state == CandidateState.RUNNING or step.number != after + 1:
            break
        after = step.number
    return after
