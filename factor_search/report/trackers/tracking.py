"""Sends what a run reports to its trackers, beside the search: it never waits for them, and they never stop it."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from factor_search.errors import FactorSearchError, one_line
from factor_search.report.trackers.contract import Axis, End, RunName, Tracker, Value
from factor_search.report.trackers.registry import open_run
from factor_search.spec import TrackerKind

MOST_WAITING = 10_000
"""Records that wait for a tracker; a slower one is dropped."""
END_SECONDS = 30.0
"""All trackers of a run together get so long at its end."""

logger = logging.getLogger(__name__)
Call = Callable[[Tracker], None]
Warn = Callable[[str], None]


class Tracking:
    """The run in all of its trackers, which begins with its first record; without trackers, nothing happens."""

    def __init__(self, kinds: Sequence[TrackerKind], name: Callable[[], RunName], warn: Warn = logger.warning) -> None:
        """Get ready.

        Args:
            kinds: of the trackers.
            name: gives the name of the run when it begins; an error drops all trackers.
            warn: is told once of each tracker that is dropped, in any thread.
        """
        self._kinds, self._name, self._warn = tuple(dict.fromkeys(kinds)), name, warn
        self._lanes: list[_Lane] | None = None
        self._ended = False

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def parameters(self, values: Mapping[str, Value]) -> None:
        """See :meth:`Tracker.parameters`."""
        self._send(lambda tracker: tracker.parameters(values))

    def figures(self, values: Mapping[str, float], axis: Axis, at: int) -> None:
        """Add a point to curves, unless an earlier process did."""
        self._send(partial(_figures, values, axis, at))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """See :meth:`Tracker.table`."""
        self._send(lambda tracker: tracker.table(name, columns, rows))

    def file(self, name: str, content: Callable[[], str]) -> None:
        """See :meth:`Tracker.file`; the content is made beside the search."""
        self._send(lambda tracker: tracker.file(name, content()))

    def end(self, state: End) -> None:
        """Say how the run ended; returns at once. The first call counts."""
        if not self._ended:
            self._ended = True
            for lane in self._lanes or ():
                lane.end(state)

    def wait(self, seconds: float = END_SECONDS) -> None:
        """Let the trackers take what is left, for a bounded time, after :meth:`end`."""
        until = time.monotonic() + seconds
        for lane in self._lanes or ():
            lane.wait(until)

    def _send(self, call: Call) -> None:
        if self._lanes is None:
            self._lanes = self._begun()
        for lane in self._lanes:
            lane.put(call)

    def _begun(self) -> list["_Lane"]:
        if not self._kinds:
            return []
        try:
            name = self._name()
            return [_Lane(kind, name, self._warn) for kind in self._kinds]
        except (FactorSearchError, OSError) as error:
            self._warn(f"{', '.join(self._kinds)} cannot be used: {one_line(error)}")
            return []


def _figures(values: Mapping[str, float], axis: Axis, at: int, tracker: Tracker) -> None:
    if at > tracker.reached.get(axis, -1):
        tracker.figures(values, axis, at)


class _Lane:
    """One tracker with its queue and its thread; a tracker that hangs holds up nothing else."""

    def __init__(self, kind: TrackerKind, name: RunName, warn: Warn) -> None:
        self._kind, self._name, self._warn = kind, name, warn
        self._queue: queue.Queue[Call | None] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._dropped = self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"tracker-{kind}", daemon=True)
        self._thread.start()

    def put(self, call: Call | None) -> None:
        if not self._dropped:
            try:
                self._queue.put_nowait(call)
            except queue.Full:
                self._drop(f"it is too slow: {MOST_WAITING:,} records wait for it")

    def end(self, state: End) -> None:
        def call(tracker: Tracker) -> None:
            self._ending = True
            tracker.end(state)

        self.put(call)
        self.put(None)

    def wait(self, until: float) -> None:
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._drop("it has not taken everything in time")

    def _run(self) -> None:
        tracker: Tracker | None = None
        try:
            tracker = open_run(self._kind, self._name)
            while (call := self._queue.get()) is not None and not self._dropped:
                call(tracker)
        except BaseException as error:  # libraries raise SystemExit too
            self._drop(one_line(error))
        if tracker is not None and not self._ending:  # or it would look as if it still ran
            with contextlib.suppress(BaseException):
                tracker.end("interrupted")

    def _drop(self, reason: str) -> None:
        with self._lock:
            if self._dropped:
                return
            self._dropped = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)  # it may be waiting
        with contextlib.suppress(Exception):
            self._warn(f"{self._kind} gets nothing more of {self._name.name!r}, which continues: {reason}")
