"""Workers as threads of this process, for tests and benchmarks."""

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec
from factor_search.text.samples import Samples, SampleSet
from workers.backend import Capacity, Reading, SharedSamples, WorkerGoneError
from workers.model_worker import LongTaskCall, ModelWorker, Prepared, ReportProgress, Setting


class BlockingWorker(Protocol):
    """What a thread calls: the methods of a :class:`workers.model_worker.ModelWorker` that the pool needs."""

    def name(self) -> str: ...

    def prepare(self, spec: JobSpec) -> Prepared: ...

    def load(self, setting: Setting) -> None: ...

    def learn(self, samples_sha256: str, samples: SampleSet) -> None: ...

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples_sha256: str,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> Evaluation: ...

    def losses_so_far(self) -> list[float]: ...

    def peak_memory(self) -> int | None: ...

    def run_long_task(self, call: LongTaskCall) -> Any: ...

    def progress(self) -> dict[str, Any] | None: ...


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
        """Ends after a kill, when the call in progress has returned."""
        self.thread.start()

    def name(self) -> "Future[str]":
        return self._call(lambda worker: worker.name())

    def prepare(self, spec: JobSpec, samples: Samples | None, begun: Mapping[str, str] | None) -> "Future[Prepared]":
        def work(worker: Any) -> Prepared:
            if isinstance(worker, ModelWorker):
                return worker.prepare(spec, samples, begun)
            prepared: Prepared = worker.prepare(spec) if samples is None else worker.prepare(spec, samples)
            return prepared  # only workers that read get samples

        return self._call(work)

    def load(self, setting: Setting) -> "Future[None]":
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
        def work(worker: BlockingWorker) -> Evaluation:
            worker.learn(samples.sha256, samples.samples)
            return worker.evaluate(setting, factors, samples.sha256, race=race, known=known)

        return self._call(work)

    def losses_so_far(self) -> "Future[list[float]]":
        answer: Future[list[float]] = Future()
        answer.set_result([] if self._worker is None else self._worker.losses_so_far())
        return answer

    def peak_memory(self) -> "Future[int | None]":
        answer: Future[int | None] = Future()
        answer.set_result(None if self._worker is None else self._worker.peak_memory())
        return answer

    def run_long_task(self, call: LongTaskCall) -> "Future[Any]":
        def while_alive(report_progress: ReportProgress) -> Any:
            def report_while_alive(progress: dict[str, Any]) -> None:
                self._check_alive()
                report_progress(progress)

            return call(report_while_alive)

        return self._call(lambda worker: worker.run_long_task(while_alive))

    def progress(self) -> "Future[dict[str, Any] | None]":
        answer: Future[dict[str, Any] | None] = Future()
        answer.set_result(None if self._worker is None else self._worker.progress())
        return answer

    def kill(self) -> None:
        """Answer all open calls with the loss of the worker."""
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

    def __init__(self, make: Callable[[], BlockingWorker], workers: int) -> None:
        """Start without threads.

        Args:
            make: creates what a thread calls, in that thread.
            workers: how many threads fit.
        """
        self._make = make
        self._workers = workers
        self.started: list[ThreadWorker] = []

    def capacity(self) -> Capacity:
        return Capacity(workers=self._workers, cpus=float(self._workers), gpus=0.0, gpus_each=0.0, nodes=1)

    def read(self, spec: JobSpec) -> Reading | None:
        """In a thread of its own, with the ``read`` of what a worker is, if it has one."""
        read = getattr(self._make(), "read", None)
        if read is None:
            return None
        result: Future[Samples | None] = Future()

        def run() -> None:
            try:
                samples = read(spec)
            except BaseException as error:
                result.set_exception(error)
            else:
                result.set_result(samples)

        threading.Thread(target=run, name="reading", daemon=True).start()
        return Reading(result, lambda: None)

    def start_worker(self) -> ThreadWorker:
        worker = ThreadWorker(self._make)
        self.started.append(worker)
        return worker

    def share(self, samples: SampleSet) -> SharedSamples:
        return SharedSamples(samples.sha256, samples, None)

    def close(self) -> None:
        for worker in self.started:
            worker.kill()
