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
from workers.attempts import ATTEMPTS, ErrandError, PrepareError, given_up, outcome_of, overdue, without_result
from workers.crew import Crew
from workers.model_worker import Prepared, Setting
from workers.tasks import Errand, JobPort, Preparation, Seat, Task, Work
from workers.turns import Turns

TICK_SECONDS = 0.25
CAPACITY_SECONDS = 2.0
WATCH_AFTER_SECONDS, WATCH_EVERY_SECONDS, WATCH_SELDOM_SECONDS = 2.0, 1.0, 30.0
"""A work that takes longer is asked how far it is, the less often the longer it takes."""
SHORT_SECONDS = 1.0
"""Evaluations that take less are handed out one ahead, since the way to a worker and back would be felt."""
IDLE_SECONDS = 120.0
"""Workers of a pool without jobs are dismissed, so that others can have their memory."""
FAILED_HIRES = 5
"""After so many workers in a row that did not come up, with none that did, jobs are not begun."""

logger = logging.getLogger(__name__)


class Pool:
    """Workers that are hired as they fit, replaced when they die, dismissed when there is nothing to do."""

    def __init__(self, crew: Crew, *, evaluation_timeout: float | None = None) -> None:
        """Start the thread that hands out work.

        Args:
            crew: the engine.
            evaluation_timeout: seconds after which a candidate's evaluation is ended.
        """
        self._crew = crew
        self._timeout = evaluation_timeout
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._seats: dict[int, Seat] = {}
        self._numbers = itertools.count()
        self._ports: dict[str, JobPort] = {}
        self._turns = Turns()
        self._wanted = 0
        self._looked_at = -1e9
        self._busy_until_idle = time.monotonic()
        self._hire_not_before = 0.0
        self._failed_hires = 0
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

    def submit(self, works: Sequence[Task] | Sequence[Errand]) -> None:
        """Queue candidates, or an errand, of a job that has joined."""
        self._messages.put(partial(self._turns.add, works))

    def end(self, errand: Errand) -> "Future[None]":
        """End an errand at once, with the worker that does it; resolves when that is done."""
        ended: Future[None] = Future()
        self._messages.put(partial(self._end, errand, ended))
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
        self._messages.put(partial(self._turns.add, [preparation]))
        return preparation.result

    def status(self) -> dict[str, int]:
        """Workers alive and busy, candidates waiting; for metrics."""
        seats = list(self._seats.values())
        return {
            "alive": sum(seat.name is not None for seat in seats),
            "busy": sum(bool(seat.given) for seat in seats),
            "waiting": len(self._turns),
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
        for seat in self._seats.values():
            seat.worker.kill()
        self._seats.clear()

    def _join(self, job_id: str, model: ModelSpec, port: JobPort) -> None:
        self._ports[job_id] = port
        self._turns.join(job_id, model)

    def _leave(self, job_id: str) -> None:
        self._ports.pop(job_id, None)
        self._turns.leave(job_id)
        for seat in self._seats.values():
            for work in seat.given:
                work.withdrawn = work.withdrawn or work.job_id == job_id

    def _withdraw(self, tasks: Sequence[Task], abandon: bool, staying: "Future[set[Task]]") -> None:
        begun = {work for seat in self._seats.values() for work in seat.given}
        stay = set() if abandon else {task for task in tasks if task in begun}
        for task in tasks:
            task.withdrawn, task.last_attempt = task not in stay, True
        self._turns.remove({task for task in tasks if task not in stay})
        staying.set_result(stay)

    def _end(self, errand: Errand, ended: "Future[None]") -> None:
        errand.withdrawn = True
        self._turns.remove({errand})
        for seat in list(self._seats.values()):
            if errand in seat.given:
                self._dismiss(seat)
        ended.set_result(None)

    def _tick(self, now: float) -> None:
        for seat in list(self._seats.values()):
            self._look_after(seat, now)
        if self._ports:
            self._busy_until_idle = now
        elif now - self._busy_until_idle > IDLE_SECONDS:
            for seat in list(self._seats.values()):
                self._dismiss(seat)
            return
        if self._ports and now - self._looked_at > CAPACITY_SECONDS:
            self._looked_at = now
            with contextlib.suppress(FactorSearchError):  # a cluster that does not answer may do so later
                self._wanted = self._crew.capacity().workers
        if self._ports and now >= self._hire_not_before:
            while len(self._seats) < self._wanted:
                self._hire(now)

    def _look_after(self, seat: Seat, now: float) -> None:
        error = overdue(seat, now, self._timeout)
        if error is not None:
            self._lose(seat, error)
            return
        work = seat.given[0] if seat.name is not None and seat.given else None
        if work is None or isinstance(work, Preparation) or not (seat.loaded or isinstance(work, Errand)):
            return
        elapsed = now - seat.since
        is_long = elapsed > WATCH_AFTER_SECONDS or isinstance(work, Errand)
        if is_long and now - seat.watched_at > min(max(WATCH_EVERY_SECONDS, elapsed / 20), WATCH_SELDOM_SECONDS):
            seat.watched_at = now
            asked = seat.worker.news() if isinstance(work, Errand) else seat.worker.losses_so_far()
            asked.add_done_callback(partial(self._heard, seat, work))

    def _heard(self, seat: Seat, work: Task | Errand, future: "Future[Any]") -> None:
        if future.exception() is None:
            self._messages.put(partial(self._tell, seat, work, future.result()))

    def _tell(self, seat: Seat, work: Task | Errand, told: Any) -> None:
        port = self._ports.get(work.job_id)
        if port is None or not seat.given or seat.given[0] is not work or work.withdrawn:
            return
        if isinstance(work, Errand):
            work.hear(told, time.monotonic())
        elif told:
            port.losses_so_far(work, told)

    # Hiring and losing workers.

    def _hire(self, now: float) -> None:
        seat = Seat(next(self._numbers), self._crew.hire(), now)
        self._seats[seat.number] = seat
        seat.worker.name().add_done_callback(lambda future: self._messages.put(partial(self._came_up, seat, future)))

    def _came_up(self, seat: Seat, future: "Future[str]") -> None:
        if self._seats.get(seat.number) is not seat:
            return
        error = future.exception()
        if error is not None:
            self._lose(seat, error)
            return
        seat.name = future.result()
        self._failed_hires = 0
        self._announce()

    def _announce(self) -> None:
        alive = sum(seat.name is not None for seat in self._seats.values())
        for port in self._ports.values():
            port.event("workers", {"alive": alive})

    def _dismiss(self, seat: Seat) -> None:
        del self._seats[seat.number]
        seat.worker.kill()

    def _lose(self, seat: Seat, error: BaseException) -> None:
        """End a worker; what it worked on counts an attempt, what lay behind that goes to others."""
        if self._seats.pop(seat.number, None) is None:
            return
        seat.worker.kill()
        now = time.monotonic()
        if seat.name is None:
            self._failed_hires += 1
            self._hire_not_before = now + min(30.0, 0.5 * 2.0 ** min(self._failed_hires, 6))
        given = [work for work in seat.given if not work.withdrawn]
        reason = one_line(error)
        logger.warning("worker %s lost: %s", seat.name or "coming up", reason)
        for port in self._ports.values():
            port.event("worker_lost", {"worker": seat.name, "reason": reason, "outcome": outcome_of(error)})
        if given and given[0] is seat.given[0]:
            self._attempt_failed(given.pop(0), error, seat)
        for work in reversed(given):
            self._turns.put_back(work)
        if self._failed_hires >= FAILED_HIRES and not any(seat.name for seat in self._seats.values()):
            for work in self._turns.give_up_whole_works():
                error_of = ErrandError if isinstance(work, Errand) else PrepareError
                work.result.set_exception(error_of(f"no worker comes up: {reason}"))

    def _attempt_failed(self, work: Work, error: BaseException, seat: Seat) -> None:
        outcome, reason = outcome_of(error), one_line(error)
        last = work.attempts >= ATTEMPTS[outcome]
        port = self._ports.get(work.job_id)
        if not isinstance(work, Task):
            if isinstance(error, FactorSearchError):
                work.result.set_exception(error)
            elif last:
                work.result.set_exception(given_up(work, outcome, reason))
            else:
                if port is not None and isinstance(work, Errand):
                    port.event("retried", {"attempt": work.attempts + 1, "outcome": outcome, "reason": reason})
                self._turns.put_back(work)
        elif port is not None and work.last_attempt:
            port.dropped(work)
        elif last and port is not None:
            port.done(work, without_result(work, outcome), seat.name or "", reason)
        elif port is not None:
            again = {"key": work.key, "attempt": work.attempts + 1, "outcome": outcome, "reason": reason}
            port.event("retried", again)
            self._turns.put_back(work)

    # Handing out work, and taking it back done.

    def _hand_out(self) -> None:
        if not len(self._turns):
            return
        now = time.monotonic()
        up = [seat for seat in self._seats.values() if seat.name is not None]
        idle = [seat for seat in up if not seat.given]
        while idle and (chosen := self._turns.choose(idle, up, now)) is not None:
            seat, work = chosen
            idle.remove(seat)
            self._give(seat, work)
        if idle or self._seconds > SHORT_SECONDS:
            return
        for seat in up:
            # one ahead, unless that could leave somebody idle at the end of a generation
            if len(self._turns) <= len(up) // 4:
                break
            if len(seat.given) == 1 and seat.loaded and isinstance(seat.given[0], Task):
                ahead = self._turns.ahead(seat)
                if ahead is not None:
                    self._give(seat, ahead)

    def _give(self, seat: Seat, work: Work) -> None:
        if seat.model != work.model:
            seat.model, seat.model_since = work.model, time.monotonic()
        seat.given.append(work)
        if isinstance(work, Task) and seat.setting != work.setting:
            seat.setting, seat.loaded = work.setting, False
            loaded = partial(self._loaded, seat, work.setting)
            seat.worker.load(work.setting).add_done_callback(lambda future: self._messages.put(partial(loaded, future)))
        if len(seat.given) == 1:
            self._begin(seat)
        if isinstance(work, Preparation):
            seat.setting = None
            future: Future[Any] = seat.worker.prepare(work.spec)
        elif isinstance(work, Errand):
            seat.setting = None
            future = seat.worker.errand(work.call)
        else:
            future = seat.worker.evaluate(work.setting, work.factors, work.samples, race=work.race, known=work.known)
        future.add_done_callback(lambda future: self._messages.put(partial(self._returned, seat, work, future)))

    def _begin(self, seat: Seat) -> None:
        """The first of what a worker was given is now what it works on."""
        seat.since = seat.watched_at = time.monotonic()
        work = seat.given[0]
        work.attempts += 1
        port = self._ports.get(work.job_id)
        if isinstance(work, Task) and port is not None and not work.withdrawn:
            port.started(work)

    def _loaded(self, seat: Seat, setting: Setting, future: "Future[None]") -> None:
        if self._seats.get(seat.number) is not seat or seat.setting != setting:
            return
        error = future.exception()
        if error is None:
            now = time.monotonic()
            seat.loaded, seat.load_seconds, seat.since = True, now - seat.since, now
        else:
            self._lose(seat, error)

    def _returned(self, seat: Seat, work: Work, future: "Future[Any]") -> None:
        if self._seats.get(seat.number) is not seat:
            return  # it was lost before; its work is with others
        error = future.exception()
        if error is not None and (isinstance(work, Task) or not isinstance(error, FactorSearchError)):
            self._lose(seat, error)  # a process in which something went wrong is not trusted with the next candidate
            return
        seconds = time.monotonic() - seat.since
        seat.given.remove(work)
        seat.since = time.monotonic()
        if seat.given:
            self._begin(seat)
        if work.withdrawn:
            return
        if not isinstance(work, Task):
            if isinstance(work, Errand):
                seat.model = None
            if error is None:
                work.result.set_result(future.result())
            else:
                self._attempt_failed(work, error, seat)
            return
        self._seconds = seconds if not self._seconds else 0.8 * self._seconds + 0.2 * seconds
        self._evaluated(seat, work, future.result())

    def _evaluated(self, seat: Seat, task: Task, evaluation: Evaluation) -> None:
        port = self._ports.get(task.job_id)
        if port is None:
            return
        if evaluation.outcome == OUT_OF_MEMORY and task.attempts < ATTEMPTS[OUT_OF_MEMORY] and not task.last_attempt:
            self._attempt_failed(task, MemoryError("the evaluation ran out of memory"), seat)
            return
        port.done(task, evaluation, seat.name or "", None)
