"""What the end of a worker means for what it worked on: a named outcome, and how often it is tried again."""

from factor_search.errors import FactorSearchError
from factor_search.measure.evaluation import FAILED, OUT_OF_MEMORY, TIMED_OUT, WORKER_LOST, Evaluation
from workers.backend import WorkerGoneError, WorkerOutOfMemoryError
from workers.tasks import LongTask, Preparation, Task, WorkerSlot

ATTEMPTS: dict[str, int] = {WORKER_LOST: 3, OUT_OF_MEMORY: 2, TIMED_OUT: 2, FAILED: 2}
"""After so many attempts, the outcome of the last one is the candidate's."""
ABANDON_SECONDS = 5.0
"""A worker that still evaluates for a cancelled job after so long is ended."""
COMING_UP_SECONDS = 300.0
LOAD_SECONDS = 4 * 3600.0
"""Loading a model may mean to download it first."""


class PrepareError(FactorSearchError):
    """A job's model and documents could not be prepared on any worker."""


class LongTaskError(FactorSearchError):
    """A long work could not be brought to its end on any worker."""


def outcome_of(error: BaseException) -> str:
    """The name of what ended an attempt."""
    if isinstance(error, WorkerOutOfMemoryError | MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, WorkerGoneError):
        return WORKER_LOST
    return TIMED_OUT if isinstance(error, TimeoutError) else FAILED


def without_result(task: Task, outcome: str) -> Evaluation:
    """The evaluation of a candidate that has none."""
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


def given_up(work: Preparation | LongTask, outcome: str, reason: str) -> FactorSearchError:
    """What is said of a work that is not tried again."""
    times = f"after {work.attempts} attempts" if work.attempts > 1 else "at once"
    if isinstance(work, Preparation):
        return PrepareError(f"the job could not be prepared, {times}: {reason}")
    return LongTaskError(f"it was given up {times}, the last ended as {outcome.replace('_', ' ')}: {reason}")


def overdue(slot: WorkerSlot, now: float, evaluation_timeout: float | None) -> BaseException | None:
    """Why a worker is to be ended for what it has not done in time, if so.

    An long_task may take as long as it likes, if only something is heard of it now and then.
    """
    if slot.name is None:
        return WorkerGoneError("it did not come up") if now - slot.started_at > COMING_UP_SECONDS else None
    if not slot.given:
        return None
    work, elapsed = slot.given[0], now - slot.since
    if work.withdrawn and elapsed > ABANDON_SECONDS:
        return WorkerGoneError("it was ended, since what it worked on is not wanted any more")
    if isinstance(work, LongTask):
        silent = now - max(slot.since, work.reported_at)
        return TimeoutError(f"nothing was heard of it for {LOAD_SECONDS:g} s") if silent > LOAD_SECONDS else None
    if not slot.loaded or isinstance(work, Preparation):
        return TimeoutError(f"nothing was loaded within {LOAD_SECONDS:g} s") if elapsed > LOAD_SECONDS else None
    if evaluation_timeout is not None and elapsed > evaluation_timeout:
        return TimeoutError(f"no result within {evaluation_timeout:g} s")
    return None
