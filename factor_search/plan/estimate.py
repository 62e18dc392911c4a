"""Estimates tokens, time and memory of each stage of a plan before it starts."""

from functools import lru_cache
from typing import Any

from transformers import PretrainedConfig

from factor_search.errors import DataError, FactorSearchError
from factor_search.job import FindSpeed, estimate_job, known_of, read_documents
from factor_search.model.configuration import read_geometry
from factor_search.model.loading import load_config
from factor_search.model.size import ModelSize
from factor_search.model.speed import Speed, assumed_speed, calibrated_alike
from factor_search.plan.costs import PlanCosts
from factor_search.plan.kinds import kind_of
from factor_search.plan.kinds.search import SearchStage
from factor_search.plan.spec import PlanSpec
from factor_search.search.estimate import MEMORY, Known, added, described
from factor_search.search.estimate_text import refusal
from factor_search.spec import JobSpec, ModelSpec


def estimate_plan(
    plan: PlanSpec,
    speed: FindSpeed = calibrated_alike,
    *,
    available: int | None = None,
    workers: int = 1,
    read: bool = True,
) -> dict[str, Any]:
    """Estimate a plan; see :func:`factor_search.job.estimate_job`.

    Args:
        plan: as it is, or expanded.
        speed: finds the speed; by default it is measured here.
        available: bytes of memory that a worker can use; None if that is not known.
        workers: how many evaluate at the same time.
        read: whether documents are read.

    Returns:
        A JSON document with ``stages``, each as the estimate of a job, and the ``total``.

    Raises:
        ModelError: the model's configuration cannot be read.
        FactorSearchError: a stage does not fit the model.
    """
    expanded = plan.expanded()
    config = load_config(plan.model)
    geometry = read_geometry(config, plan.model.original_length)
    stages = expanded.stages or []
    data = plan.data.model_copy(update={"least_tokens": plan.data.least_tokens or expanded.longest})

    @lru_cache
    def known(tokens: int, model: ModelSpec) -> Known:
        return known_of(model, config, tokens, speed, available=available, workers=workers)

    costs = PlanCosts(
        model=plan.model,
        data=data,
        geometry=geometry,
        lengths={str(stage.name): stage.target_length for stage in stages if isinstance(stage, SearchStage)},
        longest=data.least_tokens or expanded.longest,
        known=known,
    )
    described_stages = [
        {"name": stage.name, "kind": stage.kind, **kind_of(stage).estimate(stage, costs)} for stage in stages
    ]
    documents, notes = _documents(plan, data, costs.longest, read=read)
    fits = [stage["fits"] for stage in described_stages]
    largest = max(described_stages, key=lambda stage: (stage["memory"] or {}).get("peak") or 0)
    too_large = [stage for stage in described_stages if stage["fits"] is False]
    lengths = [stage["largest_length"] for stage in too_large]
    return {
        "documents": documents,
        "stages": described_stages,
        "memory": largest["memory"] or {**dict.fromkeys(MEMORY), "available": available},
        "total": added([stage["total"] for stage in described_stages]),
        "speed": described_stages[0]["speed"],
        "workers": workers,
        "fits": False if False in fits else (None if None in fits else True),
        "largest_length": None if None in lengths else min(lengths, default=None),
        "too_large": f"stage {largest['name']}: {largest['too_large']}" if too_large else None,
        "notes": list(
            dict.fromkeys([*geometry.notes, *notes, *(note for one in described_stages for note in one["notes"])])
        ),
    }


def memory_refusal(spec: JobSpec | PlanSpec, available: int, what: str, device: str | None = None) -> str | None:
    """Say why a job or plan needs far more memory than there is; None if it does not, or if that is not known.

    Neither documents nor weights are read, and nothing is measured.

    Args:
        spec: the job or plan.
        available: bytes that a worker can use.
        what: has them, in words.
        device: kind of device that has them; None for the one that the model would be loaded on here.
    """

    def unknown(model: ModelSpec, config: PretrainedConfig, size: ModelSize, tokens: int) -> Speed | None:
        return None if device is None else assumed_speed(device)

    try:
        if isinstance(spec, PlanSpec):
            estimate = estimate_plan(spec, unknown, available=available, read=False)
        else:
            estimate = estimate_job(spec, unknown, available=available, read=False)
    except FactorSearchError:
        return None  # whatever is wrong is said where it is used
    return refusal(estimate, what)


def _documents(plan: PlanSpec, data: Any, longest: int, *, read: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """The documents of all stages, which are split once, cut to the longest length."""
    if not read:
        return None, ["the documents were not read: each is taken to be long enough"]
    job = JobSpec(model=plan.model, data=data, target_length=longest, seed=plan.seed)
    try:
        return described(read_documents(job)), []
    except DataError as error:
        return None, [f"the documents cannot be used: {error}"]
