"""A stage that evaluates: the ladder of lengths on all workers, the rest on one."""

from factor_search.plan.perform import evaluate_ladder, with_ladder
from factor_search.plan.work import EvaluateWork, parse_work
from factor_search.search.problem import SearchProblem
from storage.states import JobState
from workers.errand_run import ErrandProgress, do_errand, folder_of
from workers.job_run import End, JobRun
from workers.performance import Performance
from workers.search_run import start_stage


def drive_evaluation(run: JobRun) -> End | None:
    """Measure; every evaluation of the ladder is remembered in the database. None if the job was given back.

    Raises:
        FactorSearchError: the job fails, saying why.
        JobStopped: it is not to be driven any further.
    """
    work = parse_work(run.job.spec)
    assert isinstance(work, EvaluateWork)
    run.tools.policy.check_work(work)
    spec = work.job
    if not run.has_room(spec):
        return None
    progress = ErrandProgress(run)
    prepared = run.prepare(spec, progress.phase)
    start_stage(run, SearchProblem.of(spec, prepared.geometry), prepared)
    progress.phase("measuring a ladder of lengths")
    climbed = evaluate_ladder(work, run.evaluator, prepared.geometry, prepared.samples)
    run.persist(lambda: run.tools.evaluations.end_stage(run.lease, 0))
    measured = do_errand(run, work, Performance(work, folder_of(run)))
    return End(JobState.FINISHED, {"outcome": with_ladder(measured, climbed).model_dump(mode="json")})
