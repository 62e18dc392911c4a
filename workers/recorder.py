"""Writing the records of all jobs, one transaction at a time, and repeating it until the database answers."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from factor_search.measure.evaluation import Evaluation
from storage.errors import DatabaseError, LeaseLostError
from storage.evaluations import Batch, EvaluationStore
from storage.jobs import Lease
from workers.retrying import LONGEST_PAUSE_SECONDS, retry_while_away

LINGER_SECONDS = 0.004
"""Wait after the first record: a transaction with one record costs nearly as much as one with a dozen."""

Written: TypeAlias = "Future[Mapping[str, Evaluation]]"

logger = logging.getLogger(__name__)


@dataclass
class _Pending:
    batch: Batch = field(default_factory=Batch)
    written: list[Written] = field(default_factory=list)


class Recorder:
    """One thread that writes; records that arrive during a transaction go into the next one."""

    def __init__(self, store: EvaluationStore) -> None:
        self._store = store
        self._pending: dict[Lease, _Pending] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, lease: Lease, add: Callable[[Batch], Any]) -> Written:
        """Add to the next transaction.

        Returns:
            A future that resolves after the commit, to the evaluations that were already stored. It fails with
            LeaseLostError if another coordinator has taken over the job.
        """
        written: Written = Future()
        with self._changed:
            pending = self._pending.setdefault(lease, _Pending())
            add(pending.batch)
            pending.written.append(written)
            self._changed.notify()
        return written

    def database_back(self, leases: Iterable[Lease], seconds: float) -> None:
        """Add an event to jobs that had to wait for the database."""
        for lease in leases:
            self.put(lease, lambda batch: batch.events.append(("database_back", {"seconds_away": round(seconds, 1)})))

    def close(self) -> None:
        """Write what is left and stop, without waiting for a database that does not answer."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=2 * LONGEST_PAUSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                if not self._pending:
                    return
            time.sleep(LINGER_SECONDS)
            with self._changed:
                pending, self._pending = self._pending, {}
            self._write(pending)

    def _write(self, pending: dict[Lease, _Pending]) -> None:
        try:
            batches = {lease: item.batch for lease, item in pending.items()}
            back = partial(self.database_back, list(batches))
            recorded = retry_while_away(lambda: self._store.record(batches), lambda: self._closed, back)
        except Exception as error:
            if len(pending) > 1 and not isinstance(error, DatabaseError):
                for lease, item in pending.items():  # one job's invalid record must not affect the others
                    self._write({lease: item})
                return
            logger.exception("results cannot be recorded")
            for item in pending.values():
                for written in item.written:
                    written.set_exception(error)
            return
        for lease, item in pending.items():
            for written in item.written:
                if lease in recorded.lost:
                    written.set_exception(LeaseLostError(f"job {lease.job_id} is driven by another coordinator now"))
                else:
                    written.set_result(recorded.known_before)
