"""What a stage of a plan is expected to take, by the speeds that workers have measured before it."""

from typing import Any

from factor_search.errors import FactorSearchError
from factor_search.files.reading import under
from factor_search.model.checkpoint_files import is_local
from factor_search.model.speed import recorded_speed
from factor_search.plan.estimate import estimate_plan
from factor_search.plan.spec import PlanSpec, parse_plan
from storage.speeds import RecordedSpeeds
from workers.job_run import JobRun


def estimate_of_stage(run: JobRun) -> dict[str, Any] | None:
    """The estimate of the stage that a job is; None where nothing is known, as of models that are not on this machine.

    Raises:
        JobStopped: the job was stopped.
    """
    job = run.job
    stored = run.persist(lambda: run.tools.jobs.plan_spec_of(job.id))
    if stored is None:
        return None
    plan = parse_plan(stored, stored=True)
    if not is_local(plan.model.id):
        return None
    try:
        stages = run.aside(lambda: _stages(run, plan), "estimating the stage")
    except FactorSearchError:  # whatever is wrong is said where it is used
        return None
    return next((stage for stage in stages if stage["name"] == job.plan_stage), None)


def tell_estimate(run: JobRun, estimate: dict[str, Any] | None) -> None:
    """Add an estimate to the job's events."""
    if estimate is not None:
        expected = {**estimate["total"], "peak_memory": (estimate["memory"] or {}).get("peak")}
        run.evaluator.event("estimate", expected | {"workers": estimate["workers"]})


def _stages(run: JobRun, plan: PlanSpec) -> list[dict[str, Any]]:
    capacity, evaluations = run.tools.backend.capacity(), run.tools.evaluations
    device = "cuda" if capacity.gpus_each else "cpu"
    alone = evaluations.memory_of_devices(device) if capacity.gpus_each else capacity.memory
    speed = recorded_speed(RecordedSpeeds(evaluations, run.tools.jobs), device)
    with under(run.tools.policy.reading_rules()):
        stages: list[dict[str, Any]] = estimate_plan(
            plan,
            speed,
            available=capacity.memory_beside_others(device, alone),
            workers=max(capacity.workers, 1),
            read=False,
        )["stages"]
    return stages
