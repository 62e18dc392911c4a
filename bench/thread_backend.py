"""Workers as threads of this process: for tests and benchmarks, and where one process is enough."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec
from factor_search.text.samples import SampleSet
from workers.backend import Capacity, SharedSamples, WorkerGoneError
from workers.model_worker import LongTaskCall, Prepared, ReportProgress, Setting


class BlockingWorker(Protocol):
    """What a thread works with: :class:`workers.model_worker.ModelWorker`, or a stand-in for it."""

    def name(self) -> str:
        """Of the worker."""
        ...

    def prepare(self, spec: JobSpec) -> Prepared:
        """Of a job."""
        ...

    def load(self, setting: Setting) -> None:
        """Get ready."""
        ...

    def learn(self, samples_sha256: str, samples: SampleSet) -> None:
        """Keep samples."""
        ...

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples_sha256: str,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> Evaluation:
        """A candidate."""
        ...

    def losses_so_far(self) -> list[float]:
        """Of the candidate being evaluated."""
        ...

    def run_long_task(self, call: LongTaskCall) -> Any:
        """A long work."""
        ...

    def progress(self) -> dict[str, Any] | None:
        """Of the long_task being done."""
        ...


class ThreadWorker:
    """One thread; a killed one still finishes its call, or ends it at the next progress report, without an answer."""

    def __init__(self, make: Callable[[], BlockingWorker]) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unanswered: set[Future[Any]] = set()
        self._gone = False
        self._make = make
        self._worker: BlockingWorker | None = None
        self.thread = threading.Thread(target=self._run, name="worker", daemon=True)
        """Ends when it was killed and has finished what it did."""
        self.thread.start()

    def name(self) -> "Future[str]":
        """See the protocol."""
        return self._call(lambda worker: worker.name())

    def prepare(self, spec: JobSpec) -> "Future[Prepared]":
        """See the protocol."""
        return self._call(lambda worker: worker.prepare(spec))

    def load(self, setting: Setting) -> "Future[None]":
        """See the protocol."""
        return self._call(lambda worker: worker.load(setting))

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples: SharedSamples,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> "Future[Evaluation]":
        """See the protocol."""

        def work(worker: BlockingWorker) -> Evaluation:
            worker.learn(samples.sha256, samples.samples)
            return worker.evaluate(setting, factors, samples.sha256, race=race, known=known)

        return self._call(work)

    def losses_so_far(self) -> "Future[list[float]]":
        """See the protocol."""
        answer: Future[list[float]] = Future()
        answer.set_result([] if self._worker is None else self._worker.losses_so_far())
        return answer

    def run_long_task(self, call: LongTaskCall) -> "Future[Any]":
        """See the protocol."""

        def while_alive(report_progress: ReportProgress) -> Any:
            def report_while_alive(progress: dict[str, Any]) -> None:
                self._check_alive()
                report_progress(progress)

            return call(report_while_alive)

        return self._call(lambda worker: worker.run_long_task(while_alive))

    def progress(self) -> "Future[dict[str, Any] | None]":
        """See the protocol."""
        answer: Future[dict[str, Any] | None] = Future()
        answer.set_result(None if self._worker is None else self._worker.progress())
        return answer

    def kill(self) -> None:
        """Answer everything that is open with the loss of the worker."""
        with self._lock:
            self._gone = True
            unanswered, self._unanswered = self._unanswered, set()
        self._calls.put(None)
        for future in unanswered:
            future.set_exception(WorkerGoneError("its thread was ended"))

    def _check_alive(self) -> None:
        if self._gone:
            raise WorkerGoneError("its thread was ended")

    def _call(self, work: Callable[[BlockingWorker], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._lock:
            gone = self._gone
            if not gone:
                self._unanswered.add(future)
        if gone:
            future.set_exception(WorkerGoneError("its thread was ended"))
        else:
            self._calls.put((future, lambda: work(self._worker)))  # type: ignore[arg-type]
        return future

    def _run(self) -> None:
        self._worker = self._make()
        while (call := self._calls.get()) is not None:
            future, work = call
            result: Any = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as error:
                failure = error
            with self._lock:
                wanted = future in self._unanswered
                self._unanswered.discard(future)
            if not wanted:
                continue
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)


class ThreadBackend:
    """A fixed number of threads."""

    grows = False

    def __init__(self, make: Callable[[], BlockingWorker], workers: int, *, threads: int = 1) -> None:
        """Get ready.

        Args:
            make: makes what each thread works with, in the thread.
            workers: how many threads.
            threads: processor threads of each, as its maker sets them.
        """
        self.threads = threads
        self._make = make
        self._workers = workers
        self.started: list[ThreadWorker] = []

    def capacity(self) -> Capacity:
        """What was asked for."""
        return Capacity(workers=self._workers, cpus=float(self._workers), gpus=0.0, gpus_each=0.0, nodes=1)

    def start_worker(self) -> ThreadWorker:
        """Another thread."""
        worker = ThreadWorker(self._make)
        self.started.append(worker)
        return worker

    def share(self, samples: SampleSet) -> SharedSamples:
        """Nothing to do within a process."""
        return SharedSamples(samples.sha256, samples, None)

    def close(self) -> None:
        """End all threads."""
        for worker in self.started:
            worker.kill()
