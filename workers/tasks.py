"""The work that the pool distributes (candidates, preparations, long-running tasks) and the slots that do it."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from factor_search.errors import FactorSearchError
from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec, ModelSpec
from factor_search.text.samples import Samples
from workers.backend import SharedSamples, Worker
from workers.model_worker import LongTaskCall, Prepared, Setting


@dataclass(eq=False, kw_only=True)
class Task:
    """The evaluation of one candidate."""

    job_id: str
    key: str
    """Key of the evaluation on all documents, also when a race may stop it earlier."""
    setting: Setting
    factors: Factors
    samples: SharedSamples
    race: Race | None = None
    known: Evaluation | None = None
    """A stored evaluation on the first documents, to continue from."""
    attempts: int = 0
    """Attempts started so far."""
    withdrawn: bool = False
    """The result is no longer wanted."""
    last_attempt: bool = False
    """A running attempt may finish, but no further one is started."""

    @property
    def model(self) -> ModelSpec:
        """The model that a worker needs in memory."""
        return self.setting.model


@dataclass(eq=False, kw_only=True)
class Preparation:
    """Loading a job's model, before it has candidates."""

    job_id: str
    spec: JobSpec
    samples: Samples | None
    """The job's documents; None if the worker reads them."""
    result: "Future[Prepared]"
    begun: Mapping[str, str] | None = None
    """Identity of the model with which an earlier run of the job began."""
    attempts: int = 0
    withdrawn: bool = False

    @property
    def model(self) -> ModelSpec:
        """The model that a worker needs in memory."""
        return self.spec.model


@dataclass(eq=False, kw_only=True)
class LongTask:
    """Work that a single worker does from start to end: a fine-tuning, a passkey measurement, an export."""

    job_id: str
    model: ModelSpec
    """The model, which the task loads itself."""
    call: LongTaskCall
    on_progress: Callable[[dict[str, Any]], None]
    """Receives each new progress report in the pool's thread, so it must return at once."""
    result: "Future[Any]"
    attempts: int = 0
    """Attempts started since the task last reached a new furthest step."""
    withdrawn: bool = False
    step: int = 0
    """The furthest step reported."""
    progress: dict[str, Any] | None = None
    """The last progress report."""
    reported_at: float = 0.0
    """When the last new report arrived."""

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
    """A worker and the work assigned to it. Times are seconds of the monotonic clock."""

    number: int
    worker: Worker
    started_at: float
    name: str | None = None
    """Known once the worker is up."""
    model: ModelSpec | None = None
    """The model of the work that it was last assigned."""
    model_since: float = 0.0
    setting: Setting | None = None
    loaded: bool = True
    """Whether what the setting needs is in memory."""
    load_seconds: float = 0.0
    """How long the last load took."""
    assigned: deque[Work] = field(default_factory=deque)
    """The first is in progress."""
    since: float = 0.0
    """When the first item was started, or when the worker became idle."""
    polled_at: float = 0.0
    """When it was last asked for progress."""

    @property
    def is_up(self) -> bool:
        """Whether the worker has started."""
        return self.name is not None


class JobListener(Protocol):
    """What the pool reports to a job, in the pool's thread; each method must return at once."""

    def started(self, task: Task) -> None:
        """A worker has started the candidate."""
        ...

    def losses_so_far(self, task: Task, losses: list[float]) -> None:
        """The losses of the documents finished so far, of a candidate that takes long."""
        ...

    def done(self, task: Task, evaluation: Evaluation, worker: str, error: str | None) -> None:
        """The candidate has its outcome."""
        ...

    def refused(self, task: Task, error: FactorSearchError) -> None:
        """No candidate of the job can be evaluated, for a reason that another attempt does not change."""
        ...

    def dropped(self, task: Task) -> None:
        """The worker was lost during the candidate's last allowed attempt, while the job is stopping."""
        ...

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Something happened that users may want to see."""
        ...
