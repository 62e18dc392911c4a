"""The pool: whichever worker is free gets the next candidate of whichever job is next; nobody waits for anybody."""

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from factor_search.errors import FactorSearchError, one_line
from factor_search.measure.evaluation import OUT_OF_MEMORY, Evaluation
from factor_search.spec import JobSpec, ModelSpec
from workers.attempts import ATTEMPTS, LongTaskError, PrepareError, given_up, outcome_of, overdue, without_result
from workers.backend import WorkerBackend
from workers.model_worker import Prepared, Setting
from workers.tasks import JobPort, LongTask, Preparation, Task, Work, WorkerSlot
from workers.work_queue import WorkQueue

TICK_SECONDS = 0.25
CAPACITY_SECONDS = 2.0
WATCH_AFTER_SECONDS, WATCH_EVERY_SECONDS, WATCH_SELDOM_SECONDS = 2.0, 1.0, 30.0
"""A work that takes longer is asked how far it is, the less often the longer it takes."""
SHORT_SECONDS = 1.0
"""Evaluations that take less are handed out one ahead, since the way to a worker and back would be felt."""
IDLE_SECONDS = 120.0
"""Workers of a pool without jobs are dismissed, so that others can have their memory."""
FAILED_STARTS = 5
"""After so many workers in a row that did not come up, with none that did, jobs are not begun."""

logger = logging.getLogger(__name__)


class Pool:
    """Workers that are hired as they fit, replaced when they die, dismissed when there is nothing to do."""

    def __init__(self, backend: WorkerBackend, *, evaluation_timeout: float | None = None) -> None:
        """Start the thread that hands out work.

        Args:
            backend: the engine.
            evaluation_timeout: seconds after which a candidate's evaluation is ended.
        """
        self._backend = backend
        self._timeout = evaluation_timeout
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._slots: dict[int, WorkerSlot] = {}
        self._numbers = itertools.count()
        self._ports: dict[str, JobPort] = {}
        self._queue = WorkQueue()
        self._wanted = 0
        self._looked_at = -1e9
        self._busy_until_idle = time.monotonic()
        self._start_not_before = 0.0
        self._failed_starts = 0
        self._seconds = 0.0
        """Exponential mean of an evaluation's duration."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)
        self._thread.start()

    # Called from any thread.

    def join(self, job_id: str, model: ModelSpec, port: JobPort) -> None:
        """Register a job."""
        self._messages.put(partial(self._join, job_id, model, port))

    def leave(self, job_id: str) -> None:
        """Forget a job; what it still has in the pool is abandoned."""
        self._messages.put(partial(self._leave, job_id))

    def submit(self, works: Sequence[Task] | Sequence[LongTask]) -> None:
        """Queue candidates, or an long_task, of a job that has joined."""
        self._messages.put(partial(self._queue.add, works))

    def end(self, long_task: LongTask) -> "Future[None]":
        """End an long_task at once, with the worker that does it; resolves when that is done."""
        ended: Future[None] = Future()
        self._messages.put(partial(self._end, long_task, ended))
        return ended

    def withdraw(self, tasks: Sequence[Task], *, abandon: bool) -> "Future[set[Task]]":
        """Take back candidates that no worker was given; with ``abandon``, also stop waiting for those that were.

        Returns:
            Those that will still be told of: given to workers, and not abandoned.
        """
        staying: Future[set[Task]] = Future()
        self._messages.put(partial(self._withdraw, tasks, abandon, staying))
        return staying

    def prepare(self, job_id: str, spec: JobSpec) -> "Future[Prepared]":
        """Have a worker load a job's model and read its documents."""
        preparation = Preparation(job_id=job_id, spec=spec, result=Future())
        self._messages.put(partial(self._queue.add, [preparation]))
        return preparation.result

    def status(self) -> dict[str, int]:
        """Workers alive and busy, candidates waiting; for metrics."""
        slots = list(self._slots.values())
        return {
            "alive": sum(slot.name is not None for slot in slots),
            "busy": sum(bool(slot.given) for slot in slots),
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
                self._hand_out()
            except Exception:
                logger.exception("the pool met with an error and goes on")
                time.sleep(TICK_SECONDS)
        for slot in self._slots.values():
            slot.worker.kill()
        self._slots.clear()

    def _join(self, job_id: str, model: ModelSpec, port: JobPort) -> None:
        self._ports[job_id] = port
        self._queue.join(job_id, model)

    def _leave(self, job_id: str) -> None:
        self._ports.pop(job_id, None)
        self._queue.leave(job_id)
        for slot in self._slots.values():
            for work in slot.given:
                work.withdrawn = work.withdrawn or work.job_id == job_id

    def _withdraw(self, tasks: Sequence[Task], abandon: bool, staying: "Future[set[Task]]") -> None:
        begun = {work for slot in self._slots.values() for work in slot.given}
        stay = set() if abandon else {task for task in tasks if task in begun}
        for task in tasks:
            task.withdrawn, task.last_attempt = task not in stay, True
        self._queue.remove({task for task in tasks if task not in stay})
        staying.set_result(stay)

    def _end(self, long_task: LongTask, ended: "Future[None]") -> None:
        long_task.withdrawn = True
        self._queue.remove({long_task})
        for slot in list(self._slots.values()):
            if long_task in slot.given:
                self._dismiss(slot)
        ended.set_result(None)

    def _tick(self, now: float) -> None:
        for slot in list(self._slots.values()):
            self._look_after(slot, now)
        if self._ports:
            self._busy_until_idle = now
        elif now - self._busy_until_idle > IDLE_SECONDS:
            for slot in list(self._slots.values()):
                self._dismiss(slot)
            return
        if self._ports and now - self._looked_at > CAPACITY_SECONDS:
            self._looked_at = now
            with contextlib.suppress(FactorSearchError):  # a cluster that does not answer may do so later
                self._wanted = self._backend.capacity().workers
        if self._ports and now >= self._start_not_before:
            while len(self._slots) < self._wanted:
                self._start_worker(now)

    def _look_after(self, slot: WorkerSlot, now: float) -> None:
        error = overdue(slot, now, self._timeout)
        if error is not None:
            self._lose(slot, error)
            return
        work = slot.given[0] if slot.name is not None and slot.given else None
        if work is None or isinstance(work, Preparation) or not (slot.loaded or isinstance(work, LongTask)):
            return
        elapsed = now - slot.since
        is_long = elapsed > WATCH_AFTER_SECONDS or isinstance(work, LongTask)
        if is_long and now - slot.watched_at > min(max(WATCH_EVERY_SECONDS, elapsed / 20), WATCH_SELDOM_SECONDS):
            slot.watched_at = now
            asked = slot.worker.progress() if isinstance(work, LongTask) else slot.worker.losses_so_far()
            asked.add_done_callback(partial(self._receive_progress, slot, work))

    def _receive_progress(self, slot: WorkerSlot, work: Task | LongTask, future: "Future[Any]") -> None:
        if future.exception() is None:
            self._messages.put(partial(self._pass_on_progress, slot, work, future.result()))

    def _pass_on_progress(self, slot: WorkerSlot, work: Task | LongTask, progress: Any) -> None:
        port = self._ports.get(work.job_id)
        if port is None or not slot.given or slot.given[0] is not work or work.withdrawn:
            return
        if isinstance(work, LongTask):
            work.report_progress(progress, time.monotonic())
        elif progress:
            port.losses_so_far(work, progress)

    # Hiring and losing workers.

    def _start_worker(self, now: float) -> None:
        slot = WorkerSlot(next(self._numbers), self._backend.start_worker(), now)
        self._slots[slot.number] = slot
        slot.worker.name().add_done_callback(lambda future: self._messages.put(partial(self._came_up, slot, future)))

    def _came_up(self, slot: WorkerSlot, future: "Future[str]") -> None:
        if self._slots.get(slot.number) is not slot:
            return
        error = future.exception()
        if error is not None:
            self._lose(slot, error)
            return
        slot.name = future.result()
        self._failed_starts = 0
        self._announce()

    def _announce(self) -> None:
        alive = sum(slot.name is not None for slot in self._slots.values())
        for port in self._ports.values():
            port.event("workers", {"alive": alive})

    def _dismiss(self, slot: WorkerSlot) -> None:
        del self._slots[slot.number]
        slot.worker.kill()

    def _lose(self, slot: WorkerSlot, error: BaseException) -> None:
        """End a worker; what it worked on counts an attempt, what lay behind that goes to others."""
        if self._slots.pop(slot.number, None) is None:
            return
        slot.worker.kill()
        now = time.monotonic()
        if slot.name is None:
            self._failed_starts += 1
            self._start_not_before = now + min(30.0, 0.5 * 2.0 ** min(self._failed_starts, 6))
        given = [work for work in slot.given if not work.withdrawn]
        reason = one_line(error)
        logger.warning("worker %s lost: %s", slot.name or "coming up", reason)
        for port in self._ports.values():
            port.event("worker_lost", {"worker": slot.name, "reason": reason, "outcome": outcome_of(error)})
        if given and given[0] is slot.given[0]:
            self._attempt_failed(given.pop(0), error, slot)
        for work in reversed(given):
            self._queue.put_back(work)
        if self._failed_starts >= FAILED_STARTS and not any(slot.name for slot in self._slots.values()):
            for work in self._queue.take_all_but_candidates():
                error_of = LongTaskError if isinstance(work, LongTask) else PrepareError
                work.result.set_exception(error_of(f"no worker comes up: {reason}"))

    def _attempt_failed(self, work: Work, error: BaseException, slot: WorkerSlot) -> None:
        outcome, reason = outcome_of(error), one_line(error)
        last = work.attempts >= ATTEMPTS[outcome]
        port = self._ports.get(work.job_id)
        if not isinstance(work, Task):
            if isinstance(error, FactorSearchError):
                work.result.set_exception(error)
            elif last:
                work.result.set_exception(given_up(work, outcome, reason))
            else:
                if port is not None and isinstance(work, LongTask):
                    port.event("retried", {"attempt": work.attempts + 1, "outcome": outcome, "reason": reason})
                self._queue.put_back(work)
        elif port is not None and work.last_attempt:
            port.dropped(work)
        elif last and port is not None:
            port.done(work, without_result(work, outcome), slot.name or "", reason)
        elif port is not None:
            again = {"key": work.key, "attempt": work.attempts + 1, "outcome": outcome, "reason": reason}
            port.event("retried", again)
            self._queue.put_back(work)

    # Handing out work, and taking it back done.

    def _hand_out(self) -> None:
        if not len(self._queue):
            return
        now = time.monotonic()
        up = [slot for slot in self._slots.values() if slot.name is not None]
        idle = [slot for slot in up if not slot.given]
        while idle and (chosen := self._queue.choose(idle, up, now)) is not None:
            slot, work = chosen
            idle.remove(slot)
            self._give(slot, work)
        if idle or self._seconds > SHORT_SECONDS:
            return
        for slot in up:
            # one ahead, unless that could leave somebody idle at the end of a generation
            if len(self._queue) <= len(up) // 4:
                break
            if len(slot.given) == 1 and slot.loaded and isinstance(slot.given[0], Task):
                ahead = self._queue.ahead(slot)
                if ahead is not None:
                    self._give(slot, ahead)

    def _give(self, slot: WorkerSlot, work: Work) -> None:
        if slot.model != work.model:
            slot.model, slot.model_since = work.model, time.monotonic()
        slot.given.append(work)
        if isinstance(work, Task) and slot.setting != work.setting:
            slot.setting, slot.loaded = work.setting, False
            loaded = partial(self._loaded, slot, work.setting)
            slot.worker.load(work.setting).add_done_callback(lambda future: self._messages.put(partial(loaded, future)))
        if len(slot.given) == 1:
            self._begin(slot)
        if isinstance(work, Preparation):
            slot.setting = None
            future: Future[Any] = slot.worker.prepare(work.spec)
        elif isinstance(work, LongTask):
            slot.setting = None
            future = slot.worker.run_long_task(work.call)
        else:
            future = slot.worker.evaluate(work.setting, work.factors, work.samples, race=work.race, known=work.known)
        future.add_done_callback(lambda future: self._messages.put(partial(self._returned, slot, work, future)))

    def _begin(self, slot: WorkerSlot) -> None:
        """The first of what a worker was given is now what it works on."""
        slot.since = slot.watched_at = time.monotonic()
        work = slot.given[0]
        work.attempts += 1
        port = self._ports.get(work.job_id)
        if isinstance(work, Task) and port is not None and not work.withdrawn:
            port.started(work)

    def _loaded(self, slot: WorkerSlot, setting: Setting, future: "Future[None]") -> None:
        if self._slots.get(slot.number) is not slot or slot.setting != setting:
            return
        error = future.exception()
        if error is None:
            now = time.monotonic()
            slot.loaded, slot.load_seconds, slot.since = True, now - slot.since, now
        else:
            self._lose(slot, error)

    def _returned(self, slot: WorkerSlot, work: Work, future: "Future[Any]") -> None:
        if self._slots.get(slot.number) is not slot:
            return  # it was lost before; its work is with others
        error = future.exception()
        if error is not None and (isinstance(work, Task) or not isinstance(error, FactorSearchError)):
            self._lose(slot, error)  # a process in which something went wrong is not trusted with the next candidate
            return
        seconds = time.monotonic() - slot.since
        slot.given.remove(work)
        slot.since = time.monotonic()
        if slot.given:
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
        port = self._ports.get(task.job_id)
        if port is None:
            return
        if evaluation.outcome == OUT_OF_MEMORY and task.attempts < ATTEMPTS[OUT_OF_MEMORY] and not task.last_attempt:
            self._attempt_failed(task, MemoryError("the evaluation ran out of memory"), slot)
            return
        port.done(task, evaluation, slot.name or "", None)
