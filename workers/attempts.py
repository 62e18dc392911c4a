"""What a lost worker means for its work: a named outcome, and how many attempts follow."""

from factor_search.errors import FactorSearchError
from factor_search.measure.evaluation import FAILED, OUT_OF_MEMORY, TIMED_OUT, WORKER_LOST, Evaluation
from workers.backend import WorkerGoneError, WorkerOutOfMemoryError
from workers.tasks import LongTask, Preparation, Task, WorkerSlot

ATTEMPTS: dict[str, int] = {WORKER_LOST: 3, OUT_OF_MEMORY: 2, TIMED_OUT: 2, FAILED: 2}
"""After this many attempts, the outcome of the last one is the candidate's."""
ABANDON_SECONDS = 5.0
"""A worker that still works on something withdrawn after this time is ended."""
START_SECONDS = 300.0
"""A worker that has not started after this time is replaced."""
PREPARE_SECONDS = 3600.0
"""Default limit for what a job needs before its first candidate: reading documents, and loading a model or downloading
it; ``--prepare-minutes`` sets it."""
SILENT_SECONDS = 4 * 3600.0
"""Limit for a long-running task without a new progress report."""


class PrepareError(FactorSearchError):
    """A job's model and documents could not be prepared on any worker."""


class PrepareTimeoutError(PrepareError, TimeoutError):
    """Preparing a job took longer than the operator allows."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(
            f"{what} took longer than {seconds / 60:g} min: look for a slow disk or network, or a pattern that matches "
            "too much; an operator can raise the limit with --prepare-minutes"
        )


class LongTaskError(FactorSearchError):
    """A long-running task could not be completed on any worker."""


def outcome_of(error: BaseException) -> str:
    """The name of what ended an attempt."""
    if isinstance(error, WorkerOutOfMemoryError | MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, WorkerGoneError):
        return WORKER_LOST
    return TIMED_OUT if isinstance(error, TimeoutError) else FAILED


def without_result(task: Task, outcome: str) -> Evaluation:
    """The evaluation of a candidate that has no losses, only an outcome."""
    return Evaluation(
        key=task.key,
        factors=task.factors,
        part=task.samples.samples.part,
        outcome=outcome,
        losses=(),
        tokens=(),
        losses_at={},
        seconds=0.0,
    )


def final_error(work: Preparation | LongTask, outcome: str, reason: str) -> FactorSearchError:
    """The error of work that is not tried again."""
    times = f"{work.attempts} attempt{'s' * (work.attempts != 1)}"
    if isinstance(work, Preparation):
        return PrepareError(f"the job could not be prepared after {times}: {reason}")
    return LongTaskError(f"the task failed after {times}, the last one ended as {outcome.replace('_', ' ')}: {reason}")


def overdue(
    slot: WorkerSlot, now: float, evaluation_timeout: float | None, prepare_seconds: float
) -> BaseException | None:
    """Why a worker must be ended because it exceeded a time limit; None if it did not.

    A long-running task may take any time as long as it reports progress.
    """
    if not slot.is_up:
        too_late = now - slot.started_at > START_SECONDS
        return WorkerGoneError(f"it did not start within {START_SECONDS:g} s") if too_late else None
    if not slot.assigned:
        return None
    work, elapsed = slot.assigned[0], now - slot.since
    if work.withdrawn and elapsed > ABANDON_SECONDS:
        return WorkerGoneError("it was ended because the result of its work is no longer needed")
    if isinstance(work, LongTask):
        silent = now - max(slot.since, work.reported_at)
        return TimeoutError(f"no progress report for {SILENT_SECONDS:g} s") if silent > SILENT_SECONDS else None
    if not slot.loaded or isinstance(work, Preparation):
        return PrepareTimeoutError("loading the model", prepare_seconds) if elapsed > prepare_seconds else None
    if evaluation_timeout is not None and elapsed > evaluation_timeout:
        return TimeoutError(f"no result within {evaluation_timeout:g} s")
    return None
