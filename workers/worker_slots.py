"""Starting workers as they fit into the cluster, and replacing those that are lost."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from factor_search.errors import FactorSearchError
from workers.backend import WorkerBackend
from workers.tasks import WorkerSlot

CAPACITY_SECONDS = 2.0
"""How often the backend is asked how many workers fit."""
FAILED_STARTS = 5
"""After this many failed starts in a row, with no worker up, waiting work fails."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 30.0
"""Before the next start after a failed one; doubled with each failure in a row."""


class WorkerSlots:
    """The slots of a pool, changed by the pool's thread alone."""

    def __init__(self, backend: WorkerBackend, on_started: Callable[[WorkerSlot, "Future[str]"], None]) -> None:
        """Start without workers.

        Args:
            backend: what runs workers.
            on_started: receives the future of the name of each started worker, in any thread.
        """
        self._backend = backend
        self._on_started = on_started
        self._slots: dict[int, WorkerSlot] = {}
        self._numbers = itertools.count()
        self._fitting = 0
        self._counted_at = -1e9
        self._start_not_before = 0.0
        self._failed_starts = 0

    def __iter__(self) -> Iterator[WorkerSlot]:
        return iter(list(self._slots.values()))

    def __contains__(self, slot: WorkerSlot) -> bool:
        return self._slots.get(slot.number) is slot

    def up(self) -> list[WorkerSlot]:
        """The slots whose workers are up."""
        return [slot for slot in self if slot.is_up]

    @property
    def cannot_start(self) -> bool:
        """Whether workers keep failing to start and none is up."""
        return self._failed_starts >= FAILED_STARTS and not self.up()

    def fill(self, now: float) -> None:
        """Start workers until as many run as fit."""
        if now - self._counted_at > CAPACITY_SECONDS:
            self._counted_at = now
            with contextlib.suppress(FactorSearchError):  # a cluster that does not answer may do so later
                self._fitting = self._backend.capacity().workers
        if now >= self._start_not_before:
            while len(self._slots) < self._fitting:
                self._start(now)

    def mark_up(self, slot: WorkerSlot, name: str) -> None:
        """Note that a worker is up, and its name."""
        slot.name = name
        self._failed_starts = 0

    def end(self, slot: WorkerSlot) -> None:
        """End a worker."""
        del self._slots[slot.number]
        slot.worker.kill()

    def end_lost(self, slot: WorkerSlot, now: float) -> None:
        """End a worker after an error; one that never came up delays the next start."""
        self.end(slot)
        if not slot.is_up:
            delay = FIRST_DELAY_SECONDS * 2.0 ** min(self._failed_starts, 6)
            self._failed_starts += 1
            self._start_not_before = now + min(LONGEST_DELAY_SECONDS, delay)

    def end_all(self) -> None:
        """End all workers."""
        for slot in self:
            self.end(slot)

    def _start(self, now: float) -> None:
        slot = WorkerSlot(next(self._numbers), self._backend.start_worker(), now)
        self._slots[slot.number] = slot
        slot.worker.name().add_done_callback(partial(self._on_started, slot))
