"""What the pool moves about: candidates, preparations of jobs, long_tasks, and the slots they are worked on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec, ModelSpec
from workers.backend import SharedSamples, Worker
from workers.model_worker import LongTaskCall, Prepared, Setting


@dataclass(eq=False, kw_only=True)
class Task:
    """A candidate on its way through the pool."""

    job_id: str
    key: str
    """Of its evaluation on all documents, also where it may be stopped before the last."""
    setting: Setting
    factors: Factors
    samples: SharedSamples
    race: Race | None = None
    known: Evaluation | None = None
    """On the first documents, to go on from."""
    attempts: int = 0
    """Begun so far."""
    withdrawn: bool = False
    """Nobody wants it any more."""
    last_attempt: bool = False
    """It may come to its end, but is not to be tried again."""

    @property
    def model(self) -> ModelSpec:
        """What a worker needs in memory."""
        return self.setting.model


@dataclass(eq=False, kw_only=True)
class Preparation:
    """A job's model to load and documents to read, before there are candidates."""

    job_id: str
    spec: JobSpec
    result: "Future[Prepared]"
    attempts: int = 0
    withdrawn: bool = False

    @property
    def model(self) -> ModelSpec:
        """What a worker needs in memory."""
        return self.spec.model


@dataclass(eq=False, kw_only=True)
class LongTask:
    """A long work that one worker does from its beginning to its end: a fine-tuning, passkeys, an export."""

    job_id: str
    model: ModelSpec
    """That it loads for itself."""
    call: LongTaskCall
    on_progress: Callable[[dict[str, Any]], None]
    """Receives each progress report, in the pool's thread, so it must return at once."""
    result: "Future[Any]"
    attempts: int = 0
    """Since it last came further than ever before."""
    withdrawn: bool = False
    step: int = 0
    """The furthest reported."""
    progress: dict[str, Any] | None = None
    """The last report."""
    reported_at: float = 0.0
    """When it arrived, if it differed from the one before."""

    def report_progress(self, progress: dict[str, Any] | None, now: float) -> None:
        """Pass on a report that differs from the last one; a new furthest step resets the count of attempts."""
        if not progress or progress == self.progress:
            return
        self.progress, self.reported_at = progress, now
        if progress.get("step", 0) > self.step:
            self.step, self.attempts = progress["step"], 1
        self.on_progress(progress)


Work = Task | Preparation | LongTask


@dataclass(eq=False)
class WorkerSlot:
    """A worker and what it was given. Times are seconds of the monotonic clock."""

    number: int
    worker: Worker
    started_at: float
    name: str | None = None
    """Known when it is up."""
    model: ModelSpec | None = None
    """That it was last given work for."""
    model_since: float = 0.0
    setting: Setting | None = None
    loaded: bool = True
    """Whether what the setting needs is in memory."""
    load_seconds: float = 0.0
    """How long the last load took."""
    given: deque[Work] = field(default_factory=deque)
    """The first is being worked on."""
    since: float = 0.0
    """When the first became the first, or when it fell idle."""
    watched_at: float = 0.0


class JobPort(Protocol):
    """What the pool tells a job; called from the pool's thread, so it must return at once."""

    def started(self, task: Task) -> None:
        """A worker has the candidate."""
        ...

    def losses_so_far(self, task: Task, losses: list[float]) -> None:
        """Documents that are done of a candidate that takes long."""
        ...

    def done(self, task: Task, evaluation: Evaluation, worker: str, error: str | None) -> None:
        """The candidate has its outcome."""
        ...

    def dropped(self, task: Task) -> None:
        """The candidate was not to be tried again, and its worker was lost."""
        ...

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Something happened that people want to know."""
        ...
