"""Which work an idle worker does next: generations in their order of arrival, a fair share of workers for each model.

If jobs alternated candidate by candidate, all their generations would end at the same time and leave workers idle. So
the generation that has waited longest goes first, and the next one of its job goes to the end of the queue.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from factor_search.spec import ModelSpec
from workers.tasks import LongTask, Preparation, Task, Work, WorkerSlot

HOLD_SECONDS = 30.0
"""With fewer workers than models, a worker keeps a model for this long before it changes to one that waits."""
BORROW_SECONDS = 2.0
"""A worker whose model has had no work for this long (and for longer than loading took) may work for another model."""


class WorkQueue:
    """The waiting work of all jobs."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Work]] = {}
        """By job; the job that goes first is the first key."""
        self._models: dict[str, ModelSpec] = {}

    def __len__(self) -> int:
        return sum(len(items) for items in list(self._waiting.values()))

    def join(self, job_id: str, model: ModelSpec) -> None:
        """Register a job."""
        self._waiting.setdefault(job_id, deque())
        self._models[job_id] = model

    def leave(self, job_id: str) -> None:
        """Remove a job with all its waiting work."""
        self._models.pop(job_id, None)
        for work in self._waiting.pop(job_id, ()):
            work.withdrawn = True

    def add(self, items: Iterable[Work]) -> None:
        """Queue work of registered jobs; a job that had nothing waiting goes to the end."""
        for work in items:
            waiting = self._waiting.get(work.job_id)
            if waiting is None:
                continue
            if not waiting:
                self._waiting[work.job_id] = self._waiting.pop(work.job_id)
            waiting.append(work)

    def put_back(self, work: Work) -> None:
        """Queue work again whose worker was lost; it goes first within its job."""
        if work.job_id in self._waiting and not work.withdrawn:
            self._waiting[work.job_id].appendleft(work)

    def remove(self, items: set[Work]) -> None:
        """Remove waiting work."""
        for job_id in {work.job_id for work in items} & self._waiting.keys():
            self._waiting[job_id] = deque(work for work in self._waiting[job_id] if work not in items)

    def choose(
        self, idle: Sequence[WorkerSlot], up: Sequence[WorkerSlot], now: float
    ) -> tuple[WorkerSlot, Work] | None:
        """The next work and the worker that does it; None if nothing waits that one of the idle workers should do.

        Args:
            idle: workers without work.
            up: all workers that are up.
            now: seconds of the monotonic clock.
        """
        holders = Counter(slot.model for slot in up if slot.model is not None)
        share = len(up) / len(set(self._models.values())) if self._models else 0.0
        waiting = [(items, self._models[job_id]) for job_id, items in self._waiting.items() if items]
        # a model with less than its share of workers goes first, or it might never get one
        for items, model in sorted(waiting, key=lambda item: holders[item[1]] >= max(1, int(share))):
            slot = self._slot_for(model, idle, holders, share, now)
            if slot is not None:
                return slot, items.popleft()
        return None

    def ahead(self, slot: WorkerSlot) -> Work | None:
        """A candidate that a busy worker can do next without loading anything, if its job goes first."""
        items = next((items for items in self._waiting.values() if items), None)
        if items and isinstance(items[0], Task) and items[0].setting == slot.setting:
            return items.popleft()
        return None

    def take_all_but_candidates(self) -> list[Preparation | LongTask]:
        """Remove and return all waiting preparations and long-running tasks."""
        waiting = [work for items in self._waiting.values() for work in items]
        taken = [work for work in waiting if isinstance(work, Preparation | LongTask)]
        self.remove(set(taken))
        return taken

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
        needs_worker = holders[model] < max(1, int(share))
        for slot in idle:
            assert slot.model is not None
            can_give = holders[slot.model] > share if share >= 1 else now - slot.model_since > HOLD_SECONDS
            long_idle = now - slot.since > max(BORROW_SECONDS, slot.load_seconds)
            if (needs_worker and can_give) or long_idle:
                return slot
        return None
