"""Whose turn it is: generations first come, first served; workers where their model is, a fair share for each model.

Jobs that took turns by candidates would all come to the ends of their generations together, and leave workers idle
there; so the generation that has waited longest goes first, and the next one of its job goes to the end of the queue.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from factor_search.spec import ModelSpec
from workers.tasks import LongTask, Preparation, Task, Work, WorkerSlot

HOLD_SECONDS = 30.0
"""With fewer workers than models, a worker keeps a model for so long before it changes to one that waits."""
BORROW_SECONDS = 2.0
"""A worker whose model has had no work for so long (and for longer than loading took) may help with another."""


class WorkQueue:
    """The waiting work of all jobs; decides which of it an idle worker does next."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Work]] = {}
        """In the order of turns."""
        self._models: dict[str, ModelSpec] = {}

    def __len__(self) -> int:
        return sum(len(works) for works in list(self._waiting.values()))

    def join(self, job_id: str, model: ModelSpec) -> None:
        """A job takes part."""
        self._waiting.setdefault(job_id, deque())
        self._models[job_id] = model

    def leave(self, job_id: str) -> None:
        """A job goes, with all that waits."""
        self._models.pop(job_id, None)
        for work in self._waiting.pop(job_id, ()):
            work.withdrawn = True

    def add(self, works: Iterable[Work]) -> None:
        """Queue work of jobs that take part; a job that had nothing waiting goes to the end of the turns."""
        for work in works:
            waiting = self._waiting.get(work.job_id)
            if waiting is None:
                continue
            if not waiting:
                self._waiting[work.job_id] = self._waiting.pop(work.job_id)
            waiting.append(work)

    def put_back(self, work: Work) -> None:
        """Queue work again that was lost with its worker; it comes first."""
        if work.job_id in self._waiting and not work.withdrawn:
            self._waiting[work.job_id].appendleft(work)

    def remove(self, works: set[Work]) -> None:
        """Take waiting work out."""
        for job_id in {work.job_id for work in works} & self._waiting.keys():
            self._waiting[job_id] = deque(work for work in self._waiting[job_id] if work not in works)

    def choose(
        self, idle: Sequence[WorkerSlot], slots: Sequence[WorkerSlot], now: float
    ) -> tuple[WorkerSlot, Work] | None:
        """The next piece of work and who does it; None if nothing waits that one of the idle should do.

        Args:
            idle: workers that have nothing to do.
            slots: all workers that are up.
            now: by the monotonic clock.
        """
        holders = Counter(slot.model for slot in slots if slot.model is not None)
        share = len(slots) / len(set(self._models.values())) if self._models else 0.0
        waiting = [(works, self._models[job_id]) for job_id, works in self._waiting.items() if works]
        # a model with less than its share of workers comes first, or it might never get any
        for works, model in sorted(waiting, key=lambda item: holders[item[1]] >= max(1, int(share))):
            slot = self._slot_for(model, idle, holders, share, now)
            if slot is not None:
                return slot, works.popleft()
        return None

    def ahead(self, slot: WorkerSlot) -> Work | None:
        """A candidate that a busy worker can do next without loading anything, if its job is next in turn."""
        works = next((works for works in self._waiting.values() if works), None)
        if works and isinstance(works[0], Task) and works[0].setting == slot.setting:
            return works.popleft()
        return None

    def take_all_but_candidates(self) -> list[Preparation | LongTask]:
        """Take out and return all preparations and long_tasks that wait."""
        waiting = [work for works in self._waiting.values() for work in works]
        given_up = [work for work in waiting if isinstance(work, Preparation | LongTask)]
        self.remove(set(given_up))
        return given_up

    def _slot_for(
        self, model: ModelSpec, idle: Sequence[WorkerSlot], holders: "Counter[ModelSpec]", share: float, now: float
    ) -> WorkerSlot | None:
        active = set(self._models.values())
        free = None
        for slot in idle:
            if slot.model == model:
                return slot
            if slot.model is None or slot.model not in active:
                free = free or slot
        if free is not None:
            return free
        wants = holders[model] < max(1, int(share))
        for slot in idle:
            assert slot.model is not None
            gives = holders[slot.model] > share if share >= 1 else now - slot.model_since > HOLD_SECONDS
            bored = now - slot.since > max(BORROW_SECONDS, slot.load_seconds)
            if (wants and gives) or bored:
                return slot
        return None
