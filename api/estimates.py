"""Estimates of jobs and plans for the REST interface, from what workers have recorded in the database."""

from dataclasses import dataclass
from typing import Any

from api import deferred
from api.problems import RefusedError
from api.records import Records
from api.submission import placed_refusals, with_warm_start
from factor_search.files.reading import under
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec, looks_local
from storage.speeds import RecordedSpeeds
from workers.policy import AT_SUBMISSION

ON_THE_HUB = "the model is on the hub, which is not asked for an estimate: factor-search estimate does so where it is"
NO_COORDINATOR = "no coordinator is running, so neither the number of workers nor their memory is known"
SHARED = "several workers share the memory of a machine or GPU: what is available to one is its share, more with fewer"
START_SECONDS = 6.0
"""A worker needs so long to start, most of it to import torch and transformers."""
UNKNOWN = ("documents", "evaluation", "memory", "search", "validation", "held_out", "loading", "speed", "stages")


@dataclass(frozen=True)
class Workers:
    """What live coordinators report of their workers."""

    count: int
    device: str
    memory: int | None
    """Bytes that the largest one can use if it is alone on its machine or GPU."""
    memory_each: int | None
    """The same for each, while as many as fit there use it."""
    are_up: bool = False
    """Whether one has started already; they end when there is nothing to do for a while."""

    @classmethod
    def of(cls, stores: Records) -> "Workers":
        """Those of the coordinator with the most: it drives a job alone, and several may be on the same cluster."""
        capacities = [known.capacity for known in stores.live_coordinators()]
        count = max((int(capacity.get("workers") or 0) for capacity in capacities), default=0)
        are_up = any(capacity.get("alive") for capacity in capacities)
        if any(capacity.get("gpus") for capacity in capacities):
            alone = stores.evaluations.memory_of_devices("cuda")
            sharing = min(capacity.get("workers_each_gpu", 1) for capacity in capacities if capacity.get("gpus"))
            return cls(count, "cuda", alone, None if alone is None else alone // sharing, are_up)
        alone = max((capacity.get("memory") or 0 for capacity in capacities), default=0) or None
        each = max((capacity.get("memory_each") or 0 for capacity in capacities), default=0) or alone
        return cls(count, "cpu", alone, each, are_up)


def estimated(stores: Records, spec: JobSpec | PlanSpec) -> dict[str, Any]:
    """The estimate of a job or plan, which the policy must allow as it must a submission.

    Raises:
        RefusedError: it is not allowed, or does not fit the model.
    """
    policy, workers = stores.settings.policy, Workers.of(stores)
    if isinstance(spec, PlanSpec):
        policy.check_plan(spec, AT_SUBMISSION)
    else:
        policy.check(spec, AT_SUBMISSION)
    if not _is_here(spec):
        return unknown(ON_THE_HUB)
    with placed_refusals(), under(policy.reading_rules(AT_SUBMISSION)):
        if isinstance(spec, JobSpec):
            spec = with_warm_start(spec, stores)
        estimate = deferred.estimate(
            spec,
            RecordedSpeeds(stores.evaluations, stores.jobs),
            available=workers.memory_each,
            workers=max(workers.count, 1),
            device=workers.device,
            read=spec.data.dataset is None,  # a data set on the hub would be downloaded
        )
    if not workers.count:
        estimate["notes"].append(NO_COORDINATOR)
    elif not workers.are_up:
        for part in ("loading", "total"):
            if (estimate.get(part) or {}).get("seconds") is not None:
                estimate[part]["seconds"] += START_SECONDS
    if workers.memory_each != workers.memory:
        estimate["notes"].append(SHARED)
    return estimate


def check_memory(stores: Records, spec: JobSpec | PlanSpec) -> None:
    """Refuse a submission that needs far more memory than the largest worker has, where that is known.

    Raises:
        RefusedError: says what it needs, what there is, and the largest length that would fit.
    """
    workers = Workers.of(stores)
    if workers.memory is None or not _is_here(spec):
        return
    with under(stores.settings.policy.reading_rules(AT_SUBMISSION)):
        reason = deferred.memory_refusal(spec, workers.memory, workers.device)
    if reason is not None:
        raise RefusedError(422, f"{reason}; ignore_memory=true submits it nevertheless")


def unknown(reason: str) -> dict[str, Any]:
    """An estimate of which nothing is known."""
    return {
        **dict.fromkeys(UNKNOWN),
        "total": {"tokens": None, "seconds": None},
        "workers": None,
        "fits": None,
        "largest_length": None,
        "too_large": None,
        "notes": [reason],
    }


def _is_here(spec: JobSpec | PlanSpec) -> bool:
    """Whether the model is a folder or file of this machine."""
    return looks_local(spec.model.id) or deferred.is_local(spec.model.id)
