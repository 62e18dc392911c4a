"""From a plan and the outcomes so far to the work of its next stage; works and outcomes as they are stored."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from factor_search.errors import SpecError
from factor_search.files.json_documents import explain
from factor_search.plan.kinds import WorkSpec, kind_of
from factor_search.plan.kinds.contract import FactorsDocument, Outcome, PlanContext, Work
from factor_search.plan.kinds.search import JobWork
from factor_search.plan.spec import PlanSpec
from factor_search.spec import STORED

_ADAPTER: TypeAdapter[Work] = TypeAdapter(WorkSpec)


def parse_work(document: Any) -> Work:
    """The work that was written as ``work.model_dump(mode="json")``.

    Raises:
        SpecError: it is none, naming what is wrong.
    """
    try:
        return _ADAPTER.validate_python(document, context=STORED)
    except ValidationError as error:
        raise SpecError(f"the work of a stage is not valid: {explain(error)}") from None


def parse_outcome(document: Any) -> Outcome:
    """The outcome that was written as ``outcome.model_dump(mode="json")``.

    Raises:
        SpecError: it is none, naming what is wrong.
    """
    try:
        return Outcome.model_validate(document, context=STORED)
    except ValidationError as error:
        raise SpecError(f"the outcome of a stage is not valid: {explain(error)}") from None


def work_of(plan: PlanSpec, number: int, outcomes: Sequence[Outcome]) -> Work:
    """What a stage has to do; reads no file.

    Args:
        plan: as it is, or expanded.
        number: of the stage, from 0.
        outcomes: of all stages before it, in their order.

    Raises:
        FactorsError: an outcome's factors are not valid.
    """
    stages = plan.expanded().stages
    assert stages is not None
    assert len(outcomes) >= number, "the stages before have ended"
    context = PlanContext(
        name=plan.name,
        model=plan.model,
        data=plan.data.model_copy(update={"least_tokens": plan.data.least_tokens or plan.longest}),
        training_files=plan.training_files,
        seed=plan.seed,
        outcomes=dict(zip((str(stage.name) for stage in stages), outcomes, strict=False)),
    )
    work: Work = kind_of(stages[number]).make_work(stages[number], context)
    return work.model_copy(update={"trackers": plan.trackers})


def last_factors(
    plan: PlanSpec, works: Sequence[Work], outcomes: Sequence[Outcome]
) -> tuple[FactorsDocument | None, FactorsDocument | None]:
    """Long and short factors for the last model so far; searches on an earlier one are there to compare with.

    Args:
        plan: as it is, or expanded.
        works: of the stages that have begun, in their order.
        outcomes: of those that have ended.
    """
    model, long, short = plan.model, None, None
    for work, outcome in zip(works, outcomes, strict=False):
        if "model" in kind_of(work).stage.provides and outcome.model is not None:
            model = outcome.model
        elif isinstance(work, JobWork) and work.job.model == model:
            long, short = (work.long, outcome.factors) if work.long else (outcome.factors, None)
    return long, short
