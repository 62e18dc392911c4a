"""Running a search or a readjustment from its claim to its end."""

import contextlib
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import Any

from factor_search.errors import DataError
from factor_search.measure.evaluation import EARLIER_IDENTITY
from factor_search.model.geometry import Geometry
from factor_search.report.document import build_factors_file, build_report, ending
from factor_search.report.trackers.search import report_result, watch
from factor_search.search.estimate import estimate_search
from factor_search.search.problem import FORMS, SearchProblem
from factor_search.search.selection import JobResult, measured_with, search_and_measure
from factor_search.spec import ModelSpec
from factor_search.text.samples import PARTS
from storage.states import JobState
from workers.backend import WorkerGoneError
from workers.job_run import IDENTITY, End, JobRun
from workers.model_worker import Prepared, check_same
from workers.progress import ProgressWriter
from workers.stage_estimate import tell_estimate

SAMPLES, SPEED, KNOWN_FORMS = "samples", "speed", "forms"
"""Keys of what is recorded when a job starts: a later run of the job must be about the same."""
PEAK_SECONDS = 2.0
"""Workers have so long to say how much memory they used."""
PROJECTION_SECONDS = 300.0
"""A job waits at most this long for the dashboard's study to be complete."""


def drive_search(run: JobRun) -> End | None:
    """Search and measure; None if the job was returned to the queue.

    Raises:
        FactorSearchError: the job fails for this reason.
        JobStopped: the job was stopped.
    """
    spec = run.job.parse_spec()
    began = time.monotonic()
    run.aside(lambda: run.tools.policy.check(spec), "looking for the files of the job")
    if not run.has_room(spec):
        return None
    progress = run.progress(spec.budget)
    prepared = run.prepare(spec, progress.phase)
    problem = start_stage(run, SearchProblem.of(spec, prepared.geometry), prepared)
    if not run.has_workers(spec, progress):
        return None
    estimate = estimate_of(run, problem, prepared, time.monotonic() - began)
    tell_estimate(run, estimate)
    tracking = run.track(spec.trackers)
    watcher = watch(tracking, replace(progress.watcher(), check=run.evaluator.check))
    result = search_and_measure(problem, prepared.samples, run.evaluator, watcher)
    result.identity = measured_with(result, run.evaluator, prepared.identity)
    result.estimate, result.continued = estimate, run.lease.attempt > 1
    result.seconds, result.peak_memory = time.monotonic() - began, peak_memory(run, spec.model)
    return End(JobState.FINISHED, _conclude(run, result, progress))


def estimate_of(run: JobRun, problem: SearchProblem, prepared: Prepared, elapsed: float) -> dict[str, Any] | None:
    """What the search is expected to cost, with the seconds so far; None where the worker measured no speed."""
    if prepared.known is None:
        return None
    capacity = run.tools.backend.capacity()
    available = capacity.memory_beside_others(prepared.known.device, prepared.known.available)
    known = replace(prepared.known, workers=max(capacity.workers, 1), available=available)
    spec, methods, length = problem.spec, problem.forms_compared, problem.geometry.original_length
    return estimate_search(spec, known, methods, prepared.samples, elapsed, original_length=length)


def peak_memory(run: JobRun, model: ModelSpec) -> int | None:
    """Bytes that the worker with the most memory has used; None if none answers soon."""
    until = time.monotonic() + PEAK_SECONDS
    found: list[int] = []
    with contextlib.suppress(FutureTimeoutError):
        for answer in run.tools.pool.peak_memory(model).result(PEAK_SECONDS):
            with contextlib.suppress(WorkerGoneError):
                peak = answer.result(max(until - time.monotonic(), 0.0))
                found += [] if peak is None else [peak]
    return max(found, default=None)


def start_stage(run: JobRun, problem: SearchProblem, prepared: Prepared) -> SearchProblem:
    """Record the stage, with what the dashboard needs to draw its candidates.

    Returns:
        The problem with the closed forms that an earlier run of the job began with.

    Raises:
        ModelChangedError: the files of the model are not those that an earlier run of the job began with.
        DataError: the documents are not.
    """
    spec, document = problem.spec, _describe(problem, prepared)
    study = f"{spec.name} · {run.lease.job_id}"
    start = run.tools.evaluations.start_search
    first = run.persist(lambda: start(run.lease, spec.target_length, study, document))
    _continue_from(run, first, document)
    return SearchProblem.of(spec, problem.geometry, first.get(KNOWN_FORMS, ()))


def _continue_from(run: JobRun, first: dict[str, Any], now: dict[str, Any]) -> None:
    """Continue with the results of an earlier run of the job, if it was about the same model and documents."""
    begun, found = first.get(IDENTITY), now[IDENTITY]
    if begun is None:  # an earlier version started the job
        run.evaluator.continue_from(None)
        return
    if first[SAMPLES] != now[SAMPLES]:
        raise DataError(
            "the documents are not those that the job began with: restore them, or submit the job again for the "
            "documents as they are now"
        )
    model = {name: found[name] for name in EARLIER_IDENTITY}
    check_same({name: begun[name] for name in EARLIER_IDENTITY}, model, "the job")
    if begun != found:
        changed = [name for name in found if begun.get(name) != found[name]]
        run.evaluator.event("environment_changed", {name: [begun.get(name), found[name]] for name in changed})
        run.evaluator.continue_from(begun)


def _conclude(run: JobRun, result: JobResult, progress: ProgressWriter) -> dict[str, Any]:
    progress.phase("writing the report")
    report, factors = build_report(result), build_factors_file(result).as_json()
    if run.tracking:
        report_result(run.tracking, result, report)
    run.persist(lambda: run.tools.evaluations.end_search(run.lease))
    _await_projection(run)
    run.wait(progress.finish())
    found = {"winner": report["winner"], "perplexity": factors["perplexity"]["held_out"], "ended": ending(report)}
    return {"report": report, "factors": factors, "data": found}


def _await_projection(run: JobRun) -> None:
    """Wait until the dashboard's study is complete, so that a finished job shows all its candidates."""
    until = time.monotonic() + PROJECTION_SECONDS
    while (left := run.tools.unprojected(run.lease.job_id)) != 0:
        run.evaluator.check()
        if time.monotonic() > until:
            run.evaluator.event("projection_late", {"candidates": left})
            return


def _describe(problem: SearchProblem, prepared: Prepared) -> dict[str, Any]:
    """What the dashboard needs to draw a stage."""
    samples, space = prepared.samples, problem.space
    return {
        IDENTITY: prepared.identity,
        SPEED: _speed(prepared),
        KNOWN_FORMS: list(FORMS),
        SAMPLES: samples.sha256,
        "geometry": _geometry(problem.geometry),
        "closed_forms": {name: factors.as_json() for name, factors in problem.methods.items()},
        "documents": {part: [sample.source for sample in getattr(samples, part).samples] for part in PARTS},
        "space": {
            "initial_tokens": list(space.initial_tokens),
            "attention_factors": list(space.attention_factors),
            "lower": 1.0,
            "upper": 1.0 + space.step * space.top_level,
        },
    }


def _speed(prepared: Prepared) -> dict[str, Any] | None:
    """What the worker measured, for estimates of other jobs with models of the same size."""
    known = prepared.known
    if known is None or known.size is None or known.speed is None:
        return None
    return {"key": known.size.key, "available": known.available, **known.speed.as_json()}


def _geometry(geometry: Geometry) -> dict[str, Any]:
    return {
        "architecture": geometry.architecture,
        "pairs": geometry.pairs,
        "rotary_dim": geometry.rotary_dim,
        "original_length": geometry.original_length,
        "wavelengths": geometry.wavelengths,
        "critical_dimension": geometry.critical_dimension,
    }
