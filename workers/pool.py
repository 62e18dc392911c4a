"""The pool: whichever worker is idle gets the next candidate of whichever job is next; no worker waits for another."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from factor_search.errors import FactorSearchError, ModelChangedError, one_line
from factor_search.measure.evaluation import OUT_OF_MEMORY, Evaluation
from factor_search.spec import JobSpec, ModelSpec
from factor_search.text.samples import Samples
from workers.attempts import (
    ATTEMPTS,
    PREPARE_SECONDS,
    LongTaskError,
    PrepareError,
    final_error,
    outcome_of,
    overdue,
    without_result,
)
from workers.backend import WorkerBackend
from workers.model_worker import Prepared, Setting
from workers.tasks import JobListener, LongTask, Preparation, Task, Work, WorkerSlot
from workers.work_queue import WorkQueue
from workers.worker_slots import WorkerSlots

TICK_SECONDS = 0.25
POLL_AFTER_SECONDS, POLL_EVERY_SECONDS, POLL_SELDOM_SECONDS = 2.0, 1.0, 30.0
"""Work that takes longer is asked for its progress, the less often the longer it takes."""
SHORT_SECONDS = 1.0
"""Shorter evaluations are assigned one ahead, because the way to a worker and back would leave it idle."""
IDLE_SECONDS = 120.0
"""A pool without jobs ends its workers after this time, so that others can use their memory."""

logger = logging.getLogger(__name__)


class Pool:
    """Workers that are started as they fit, replaced when they die, and ended when there is nothing to do."""

    def __init__(
        self,
        backend: WorkerBackend,
        *,
        evaluation_timeout: float | None = None,
        prepare_seconds: float = PREPARE_SECONDS,
    ) -> None:
        """Start the thread that assigns work.

        Args:
            backend: runs the workers.
            evaluation_timeout: seconds after which a candidate's evaluation is ended.
            prepare_seconds: seconds after which the loading of a model is ended.
        """
        self._timeout = evaluation_timeout
        self._prepare_seconds = prepare_seconds
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._slots = WorkerSlots(backend, lambda slot, name: self._messages.put(partial(self._started, slot, name)))
        self._listeners: dict[str, JobListener] = {}
        self._queue = WorkQueue()
        self._last_job_at = time.monotonic()
        self._seconds = 0.0
        """Exponential mean of an evaluation's duration."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)
        self._thread.start()

    # Called from any thread.

    def join(self, job_id: str, model: ModelSpec, listener: JobListener) -> None:
        """Register a job."""
        self._messages.put(partial(self._join, job_id, model, listener))

    def leave(self, job_id: str) -> None:
        """Remove a job and abandon the work it still has in the pool."""
        self._messages.put(partial(self._leave, job_id))

    def submit(self, items: Sequence[Task] | Sequence[LongTask]) -> None:
        """Queue candidates or a long-running task of a job that has joined."""
        self._messages.put(partial(self._queue.add, items))

    def end(self, long_task: LongTask) -> "Future[None]":
        """End a long-running task at once, together with its worker; resolves when that is done."""
        ended: Future[None] = Future()
        self._messages.put(partial(self._end, long_task, ended))
        return ended

    def withdraw(self, tasks: Sequence[Task], *, abandon: bool) -> "Future[set[Task]]":
        """Take back candidates that are not assigned to a worker; with ``abandon``, also ignore those that are.

        Returns:
            The candidates whose outcomes will still be reported: assigned and not abandoned.
        """
        remaining: Future[set[Task]] = Future()
        self._messages.put(partial(self._withdraw, tasks, abandon, remaining))
        return remaining

    def prepare(
        self, job_id: str, spec: JobSpec, samples: Samples | None, begun: Mapping[str, str] | None = None
    ) -> "Future[Prepared]":
        """See :meth:`workers.model_worker.ModelWorker.prepare`."""
        preparation = Preparation(job_id=job_id, spec=spec, samples=samples, begun=begun, result=Future())
        self._messages.put(partial(self._queue.add, [preparation]))
        return preparation.result

    def peak_memory(self, model: ModelSpec) -> "Future[list[Future[int | None]]]":
        """Ask all workers with a model for the most memory that they have used; resolves to their answers to come."""
        asked: Future[list[Future[int | None]]] = Future()

        def ask() -> None:
            asked.set_result([slot.worker.peak_memory() for slot in self._slots.up() if slot.model == model])

        self._messages.put(ask)
        return asked

    def status(self) -> dict[str, int]:
        """The number of workers alive and busy, and of waiting items; for metrics."""
        slots = list(self._slots)
        return {
            "alive": sum(slot.is_up for slot in slots),
            "busy": sum(bool(slot.assigned) for slot in slots),
            "waiting": len(self._queue),
        }

    def close(self) -> None:
        """End all workers."""
        self._closed = True
        self._messages.put(lambda: None)
        self._thread.join(timeout=10)

    # Everything below runs in the pool's own thread.

    def _run(self) -> None:
        ticked = 0.0
        while not self._closed:
            try:
                message: Callable[[], None] | None = self._messages.get(timeout=TICK_SECONDS)
            except queue.Empty:
                message = None
            try:
                while message is not None:
                    message()
                    message = None if self._messages.empty() else self._messages.get()
                if time.monotonic() - ticked >= TICK_SECONDS:
                    ticked = time.monotonic()
                    self._tick(ticked)
                self._dispatch()
            except Exception:
                logger.exception("internal error in the pool, which continues")
                time.sleep(TICK_SECONDS)
        self._slots.end_all()

    def _join(self, job_id: str, model: ModelSpec, listener: JobListener) -> None:
        self._listeners[job_id] = listener
        self._queue.join(job_id, model)

    def _leave(self, job_id: str) -> None:
        self._listeners.pop(job_id, None)
        self._queue.leave(job_id)
        for slot in self._slots:
            for work in slot.assigned:
                work.withdrawn = work.withdrawn or work.job_id == job_id

    def _withdraw(self, tasks: Sequence[Task], abandon: bool, remaining: "Future[set[Task]]") -> None:
        assigned = {work for slot in self._slots for work in slot.assigned}
        kept = set() if abandon else {task for task in tasks if task in assigned}
        for task in tasks:
            task.withdrawn, task.last_attempt = task not in kept, True
        self._queue.remove({task for task in tasks if task not in kept})
        remaining.set_result(kept)

    def _end(self, long_task: LongTask, ended: "Future[None]") -> None:
        long_task.withdrawn = True
        self._queue.remove({long_task})
        for slot in self._slots:
            if long_task in slot.assigned:
                self._slots.end(slot)
        ended.set_result(None)

    def _tick(self, now: float) -> None:
        for slot in self._slots:
            error = overdue(slot, now, self._timeout, self._prepare_seconds)
            if error is None:
                self._poll(slot, now)
            else:
                self._lose(slot, error)
        if self._listeners:
            self._last_job_at = now
            self._slots.fill(now)
        elif now - self._last_job_at > IDLE_SECONDS:
            self._slots.end_all()

    # Progress of work that takes long.

    def _poll(self, slot: WorkerSlot, now: float) -> None:
        work = slot.assigned[0] if slot.is_up and slot.assigned else None
        if work is None or isinstance(work, Preparation) or not (slot.loaded or isinstance(work, LongTask)):
            return
        elapsed = now - slot.since
        is_long = elapsed > POLL_AFTER_SECONDS or isinstance(work, LongTask)
        if is_long and now - slot.polled_at > min(max(POLL_EVERY_SECONDS, elapsed / 20), POLL_SELDOM_SECONDS):
            slot.polled_at = now
            answer = slot.worker.progress() if isinstance(work, LongTask) else slot.worker.losses_so_far()
            answer.add_done_callback(partial(self._polled, slot, work))

    def _polled(self, slot: WorkerSlot, work: Task | LongTask, answer: "Future[Any]") -> None:
        """Called from any thread."""
        if answer.exception() is None:
            self._messages.put(partial(self._report_progress, slot, work, answer.result()))

    def _report_progress(self, slot: WorkerSlot, work: Task | LongTask, progress: Any) -> None:
        listener = self._listeners.get(work.job_id)
        if listener is None or not slot.assigned or slot.assigned[0] is not work or work.withdrawn:
            return
        if isinstance(work, LongTask):
            work.report_progress(progress, time.monotonic())
        elif progress:
            listener.losses_so_far(work, progress)

    # Workers that start and workers that are lost.

    def _started(self, slot: WorkerSlot, name: "Future[str]") -> None:
        if slot not in self._slots:
            return
        error = name.exception()
        if error is not None:
            self._lose(slot, error)
            return
        self._slots.mark_up(slot, name.result())
        self._announce("workers", {"alive": len(self._slots.up())})

    def _announce(self, kind: str, data: dict[str, Any]) -> None:
        for listener in self._listeners.values():
            listener.event(kind, data)

    def _lose(self, slot: WorkerSlot, error: BaseException) -> None:
        """End a worker: the item in progress counts as an attempt, those assigned ahead return to the queue."""
        if slot not in self._slots:
            return
        self._slots.end_lost(slot, time.monotonic())
        reason = one_line(error)
        lost = {"event": "worker_lost", "worker": slot.name, "reason": reason}
        logger.warning("lost worker %s: %s", slot.name or "that was starting", reason, extra=lost)
        self._announce("worker_lost", {"worker": slot.name, "reason": reason, "outcome": outcome_of(error)})
        wanted = [work for work in slot.assigned if not work.withdrawn]
        if wanted and wanted[0] is slot.assigned[0]:
            self._attempt_failed(wanted.pop(0), error, slot)
        for work in reversed(wanted):
            self._queue.put_back(work)
        if self._slots.cannot_start:
            for item in self._queue.take_all_but_candidates():
                error_class = LongTaskError if isinstance(item, LongTask) else PrepareError
                item.result.set_exception(error_class(f"no worker could be started: {reason}"))

    def _attempt_failed(self, work: Work, error: BaseException, slot: WorkerSlot) -> None:
        outcome, reason = outcome_of(error), one_line(error)
        is_last = work.attempts >= ATTEMPTS[outcome]
        retried = {"attempt": work.attempts + 1, "outcome": outcome, "reason": reason}
        listener = self._listeners.get(work.job_id)
        if not isinstance(work, Task):
            if isinstance(error, FactorSearchError):
                work.result.set_exception(error)
            elif is_last:
                work.result.set_exception(final_error(work, outcome, reason))
            else:
                if listener is not None and isinstance(work, LongTask):
                    listener.event("retried", retried)
                self._queue.put_back(work)
        elif listener is not None and isinstance(error, ModelChangedError):
            listener.refused(work, error)
        elif listener is not None and work.last_attempt:
            listener.dropped(work)
        elif listener is not None and is_last:
            listener.done(work, without_result(work, outcome), slot.name or "", reason)
        elif listener is not None:
            listener.event("retried", {"key": work.key} | retried)
            self._queue.put_back(work)

    # Assigning work, and receiving results.

    def _dispatch(self) -> None:
        if not len(self._queue):
            return
        now = time.monotonic()
        up = self._slots.up()
        idle = [slot for slot in up if not slot.assigned]
        while idle and (chosen := self._queue.choose(idle, up, now)) is not None:
            slot, work = chosen
            idle.remove(slot)
            self._assign(slot, work)
        if not idle and self._seconds <= SHORT_SECONDS:
            self._assign_ahead(up)

    def _assign_ahead(self, up: list[WorkerSlot]) -> None:
        """Give busy workers a second candidate, unless that could leave others idle at the end of a generation."""
        for slot in up:
            if len(self._queue) <= len(up) // 4:
                break
            if len(slot.assigned) == 1 and slot.loaded and isinstance(slot.assigned[0], Task):
                ahead = self._queue.ahead(slot)
                if ahead is not None:
                    self._assign(slot, ahead)

    def _assign(self, slot: WorkerSlot, work: Work) -> None:
        if slot.model != work.model:
            slot.model, slot.model_since = work.model, time.monotonic()
        slot.assigned.append(work)
        if isinstance(work, Task) and slot.setting != work.setting:
            slot.setting, slot.loaded = work.setting, False
            loaded = partial(self._loaded, slot, work.setting)
            slot.worker.load(work.setting).add_done_callback(lambda future: self._messages.put(partial(loaded, future)))
        if len(slot.assigned) == 1:
            self._begin(slot)
        if isinstance(work, Preparation):
            slot.setting = None
            future: Future[Any] = slot.worker.prepare(work.spec, work.samples, work.begun)
        elif isinstance(work, LongTask):
            slot.setting = None
            future = slot.worker.run_long_task(work.call)
        else:
            future = slot.worker.evaluate(work.setting, work.factors, work.samples, race=work.race, known=work.known)
        future.add_done_callback(lambda future: self._messages.put(partial(self._returned, slot, work, future)))

    def _begin(self, slot: WorkerSlot) -> None:
        """The first item assigned to a worker is now in progress."""
        slot.since = slot.polled_at = time.monotonic()
        work = slot.assigned[0]
        work.attempts += 1
        listener = self._listeners.get(work.job_id)
        if isinstance(work, Task) and listener is not None and not work.withdrawn:
            listener.started(work)

    def _loaded(self, slot: WorkerSlot, setting: Setting, future: "Future[None]") -> None:
        if slot not in self._slots or slot.setting != setting:
            return
        error = future.exception()
        if error is None:
            now = time.monotonic()
            slot.loaded, slot.load_seconds, slot.since = True, now - slot.since, now
        else:
            self._lose(slot, error)

    def _returned(self, slot: WorkerSlot, work: Work, future: "Future[Any]") -> None:
        if slot not in self._slots:
            return  # the worker was lost before, so its work is already elsewhere
        error = future.exception()
        if error is not None and (isinstance(work, Task) or not isinstance(error, FactorSearchError)):
            self._lose(slot, error)  # a process after an unexpected error is not used for another candidate
            return
        seconds = time.monotonic() - slot.since
        slot.assigned.remove(work)
        slot.since = time.monotonic()
        if slot.assigned:
            self._begin(slot)
        if work.withdrawn:
            return
        if not isinstance(work, Task):
            if isinstance(work, LongTask):
                slot.model = None
            if error is None:
                work.result.set_result(future.result())
            else:
                self._attempt_failed(work, error, slot)
            return
        self._seconds = seconds if not self._seconds else 0.8 * self._seconds + 0.2 * seconds
        self._evaluated(slot, work, future.result())

    def _evaluated(self, slot: WorkerSlot, task: Task, evaluation: Evaluation) -> None:
        listener = self._listeners.get(task.job_id)
        if listener is None:
            return
        if evaluation.outcome == OUT_OF_MEMORY and task.attempts < ATTEMPTS[OUT_OF_MEMORY] and not task.last_attempt:
            self._attempt_failed(task, MemoryError("the evaluation ran out of memory"), slot)
            return
        listener.done(task, evaluation, slot.name or "", None)
