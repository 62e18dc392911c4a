"""The interface between the pool and what runs workers: Ray, or threads of this process."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec
from factor_search.text.samples import Samples, SampleSet
from workers.model_worker import LongTaskCall, Prepared, Setting


class WorkerGoneError(Exception):
    """The worker's process or machine is gone; the message says why, as far as it is known."""


class WorkerOutOfMemoryError(WorkerGoneError):
    """The backend ended the worker because its machine ran out of memory."""


@dataclass(frozen=True)
class SharedSamples:
    """Samples that were sent to the backend once, for all workers."""

    sha256: str
    samples: SampleSet
    reference: Any
    """The backend's own."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The resources of a backend."""

    workers: int
    """How many workers fit."""
    cpus: float
    gpus: float
    gpus_each: float
    """GPUs of each worker."""
    nodes: int
    memory: int | None = None
    """Bytes that a worker on the largest node can use if it is alone there; None if that is not known."""
    memory_each: int | None = None
    """The same for each, while as many as fit on that node use it."""

    @property
    def workers_each_gpu(self) -> int:
        """How many workers share a GPU."""
        return max(1, min(self.workers, int(1 / self.gpus_each + 1e-9))) if self.gpus_each else 1

    def memory_beside_others(self, device: str, alone: int | None) -> int | None:
        """Bytes that a worker can use while others use the same machine or GPU; None if that is not known.

        Args:
            device: kind of device that it computes on.
            alone: bytes that it could use there if it was alone.
        """
        if device == "cpu":
            return min((known for known in (alone, self.memory_each) if known is not None), default=None)
        return None if alone is None else alone // self.workers_each_gpu


@dataclass(frozen=True)
class Reading:
    """The reading of a job's documents beside the workers."""

    result: "Future[Samples | None]"
    cancel: Callable[[], None]
    """Ends it, as far as it can be ended."""


class Worker(Protocol):
    """A worker somewhere; it executes its calls in order, one at a time.

    A future fails with WorkerGoneError if the worker is lost, and otherwise with what the call raised.
    """

    def name(self) -> "Future[str]":
        """Resolves when the worker is up."""
        ...

    def prepare(self, spec: JobSpec, samples: Samples | None, begun: Mapping[str, str] | None) -> "Future[Prepared]":
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
        """The losses of the candidate in progress; answers while it is evaluated."""
        ...

    def peak_memory(self) -> "Future[int | None]":
        """See :meth:`workers.model_worker.ModelWorker.peak_memory`."""
        ...

    def run_long_task(self, call: LongTaskCall) -> "Future[Any]":
        """See :meth:`workers.model_worker.ModelWorker.run_long_task`."""
        ...

    def progress(self) -> "Future[dict[str, Any] | None]":
        """The last progress report of the long-running task; answers while the task runs."""
        ...

    def kill(self) -> None:
        """End the worker at once, whatever it is doing."""
        ...


class WorkerBackend(Protocol):
    """Runs workers."""

    grows: bool
    """Whether machines may join later."""

    def capacity(self) -> Capacity:
        """The resources that exist now."""
        ...

    def read(self, spec: JobSpec) -> Reading | None:
        """Read a job's documents in a process or thread that is no worker; None if workers read for themselves."""
        ...

    def start_worker(self) -> Worker:
        """Start a worker, which may take a while to come up."""
        ...

    def share(self, samples: SampleSet) -> SharedSamples:
        """Make samples available to all workers."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
