"""The seam between the pool and whatever runs workers: Ray, or threads of this process."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec
from factor_search.text.samples import SampleSet
from workers.model_worker import LongTaskCall, Prepared, Setting


class WorkerGoneError(Exception):
    """The worker's process or machine is gone; says what is known of why."""


class WorkerOutOfMemoryError(WorkerGoneError):
    """The engine ended the worker because its machine ran out of memory."""


@dataclass(frozen=True)
class SharedSamples:
    """Samples that were handed to the engine once, for all workers."""

    sha256: str
    samples: SampleSet
    reference: Any
    """The engine's."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What there is to work with."""

    workers: int
    """How many workers fit."""
    cpus: float
    gpus: float
    gpus_each: float
    """That a worker has."""
    nodes: int


class Worker(Protocol):
    """A worker somewhere; calls are carried out in their order, one at a time.

    The futures fail with WorkerGoneError if the worker is lost, and with what the work raised otherwise.
    """

    def name(self) -> "Future[str]":
        """Resolves when the worker is up."""
        ...

    def prepare(self, spec: JobSpec) -> "Future[Prepared]":
        """See :meth:`workers.model_worker.ModelWorker.prepare`."""
        ...

    def load(self, setting: Setting) -> "Future[None]":
        """See :meth:`workers.model_worker.ModelWorker.load`."""
        ...

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples: SharedSamples,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> "Future[Evaluation]":
        """See :meth:`workers.model_worker.ModelWorker.evaluate`."""
        ...

    def losses_so_far(self) -> "Future[list[float]]":
        """Answered while a candidate is being evaluated."""
        ...

    def run_long_task(self, call: LongTaskCall) -> "Future[Any]":
        """See :meth:`workers.model_worker.ModelWorker.run_long_task`."""
        ...

    def progress(self) -> "Future[dict[str, Any] | None]":
        """What was last heard of the long_task; answered while it is being done."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does."""
        ...


class WorkerBackend(Protocol):
    """An engine that runs workers."""

    threads: int
    """Processor threads of each worker."""
    grows: bool
    """Whether machines may join later."""

    def capacity(self) -> Capacity:
        """What there is now."""
        ...

    def start_worker(self) -> Worker:
        """A new worker; it may take a while to come up."""
        ...

    def share(self, samples: SampleSet) -> SharedSamples:
        """Make samples available to all workers."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
