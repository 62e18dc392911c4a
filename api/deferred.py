"""What routes need of torch, transformers and matplotlib: each is imported by the first request that needs it.

Together they take seconds and hundreds of megabytes. Without them the server listens soon after its start, and stays
small while it is only asked for states and results.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factor_search.errors import ExportError
from factor_search.factors_file import FactorsFile
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec, ModelSpec

if TYPE_CHECKING:
    from factor_search.model.speed import Recorded


def check_possible(spec: JobSpec) -> tuple[str, ...]:
    """Refuse a job that cannot succeed; see :func:`factor_search.job.check_possible`."""
    from factor_search.job import check_possible

    return check_possible(spec)


def is_local(model_id: str) -> bool:
    """Whether a model is a folder or file of this machine."""
    from factor_search.model.checkpoint_files import is_local

    return is_local(model_id)


def check_plan(spec: PlanSpec) -> tuple[str, ...]:
    """Refuse a plan that cannot succeed; see :func:`factor_search.plan.check.check_plan`."""
    from factor_search.plan.check import check_plan

    return check_plan(spec)


def estimate(
    spec: JobSpec | PlanSpec, recorded: "Recorded", *, available: int | None, workers: int, device: str, read: bool
) -> dict[str, Any]:
    """Estimate a job or plan with what workers have recorded; nothing is measured here.

    Args:
        spec: the job or plan.
        recorded: looks up speeds.
        available: bytes of memory that a worker can use.
        workers: how many there are.
        device: kind of device of the workers.
        read: whether documents are read.
    """
    from factor_search.job import estimate_job
    from factor_search.model.speed import recorded_speed
    from factor_search.plan.estimate import estimate_plan

    speed = recorded_speed(recorded, device)
    if isinstance(spec, PlanSpec):
        return estimate_plan(spec, speed, available=available, workers=workers, read=read)
    return estimate_job(spec, speed, available=available, workers=workers, read=read)


def memory_refusal(spec: JobSpec | PlanSpec, available: int, device: str) -> str | None:
    """Why a job or plan does not fit into the memory of a worker; see :func:`factor_search.plan.estimate`."""
    from factor_search.plan.estimate import memory_refusal

    return memory_refusal(spec, available, "the largest worker", device)


def check_checkpoint(work: AwaitWork, folder: Path) -> None:
    """Refuse a checkpoint of another model; see :func:`factor_search.plan.checkpoint.check_checkpoint`."""
    from factor_search.plan.checkpoint import check_checkpoint

    check_checkpoint(work, folder)


def engine_document(format: str, factors: FactorsFile, model: ModelSpec, nearest: bool) -> dict[str, Any]:
    """The JSON that an engine reads, with the factors in it.

    Raises:
        ExportError: the format cannot express the factors, or JSON cannot express the document.
    """
    from factor_search.export.contract import Source
    from factor_search.export.registry import engine_named, expressible

    engine = engine_named(format)
    source, _ = expressible(engine, Source(factors, model), nearest=nearest)
    document = engine.document(source)
    try:
        json.dumps(document, allow_nan=False)
    except ValueError:  # Falcon-H1 has an infinite limit, which files of Python's can hold
        raise ExportError(
            f"the configuration of {model.id} has numbers that JSON cannot express: download the factors, and run "
            f"factor-search export --format {format} where the model is"
        ) from None
    return document


def job_page(report: dict[str, Any]) -> str:
    """The report of a job as a page."""
    from factor_search.report.page import render

    return render(report)


def plan_report(plan: PlanSpec, works: Sequence[Work], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The report of a plan; see :func:`factor_search.plan.report.plan_report`."""
    from factor_search.plan.report import plan_report

    return plan_report(plan, works, outcomes)


def plan_page(report: dict[str, Any]) -> str:
    """The report of a plan as a page."""
    from factor_search.plan.page import render

    return render(report)
