"""The evaluator of a job in the service: what is stored is reused, the rest goes through the pool and is recorded."""

import contextlib
import itertools
import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from factor_search.errors import FactorSearchError, one_line
from factor_search.factors import Factors
from factor_search.measure.evaluation import FAILED, WORKER_LOST, Evaluation, evaluation_key
from factor_search.measure.race import Race
from factor_search.text.samples import SampleSet
from storage.errors import DatabaseError, LeaseLostError
from storage.evaluations import Batch, Candidate, Computed, EvaluationStore
from storage.jobs import Lease
from storage.states import StateRequest
from workers.backend import SharedSamples, WorkerBackend
from workers.known_results import KnownResults, known_results
from workers.model_worker import Prepared, Setting
from workers.pool import Pool
from workers.recorder import Recorder, Written
from workers.retrying import retry_while_away
from workers.tasks import Task

LEASE_LOST, SHUTDOWN = "lease_lost", "shutdown"
RECORDING_SECONDS = 5.0
"""So long a shutdown waits for what is still to be recorded."""
FAILURES_IN_A_ROW = 5
"""After so many candidates without a result, each tried more than once, it is not the candidates' fault."""


@dataclass(frozen=True)
class _Result:
    """A candidate has come to its end."""

    key: str
    """That it was proposed with."""
    evaluation: Evaluation | None
    """As recorded; None if it was dropped on the way to a stop."""
    error: str | None = None
    """What a failed attempt said."""


class JobStopped(Exception):  # noqa: N818 - not an error
    """A job is not driven any further here; ``reason`` is pause, cancel, lease_lost or shutdown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EvaluationsFailError(FactorSearchError):
    """One candidate after the other fails in a way that says nothing about the candidates."""


class RecordingError(FactorSearchError):
    """What the job found cannot be written into the database."""


class JobEvaluator:
    """Evaluates generations of one job on the pool.

    An evaluation is given to the search only when it is in the database, so whatever the search has seen is found there
    by a later run, which then takes the same way. It also is the job's port to the pool.
    """

    def __init__(
        self, lease: Lease, store: EvaluationStore, recorder: Recorder, pool: Pool, backend: WorkerBackend
    ) -> None:
        self._lease = lease
        self._store = store
        self._recorder = recorder
        self._pool = pool
        self._backend = backend
        self.pool_id = f"{lease.job_id}:{lease.attempt}"
        """What the pool knows the job by: an earlier driver of it may not have left yet."""
        self._stopped: str | None = None
        self._unrecordable: str | None = None
        self._inbox: queue.SimpleQueue[_Result | None] = queue.SimpleQueue()
        """None to look whether the job was stopped."""
        self._places: dict[str, list[Candidate]] = {}
        """Of the present generation, by key of the whole evaluation."""
        self._begun: set[str] = set()
        self._shared: dict[str, SharedSamples] = {}
        self._failures = 0
        self._calls: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    def use(self, prepared: Prepared, setting: Setting) -> None:
        """Say what is evaluated, once that is known."""
        self._prepared = prepared
        self._setting = setting

    def stop(self, reason: str) -> None:
        """Have the search end soon; called from any thread. The first reason counts, unless it was to pause."""
        if self._stopped in (None, StateRequest.PAUSE):
            self._stopped = reason
        self._inbox.put(None)

    def resume(self) -> None:
        """Take back a pause."""
        if self._stopped == StateRequest.PAUSE:
            self._stopped = None

    def check(self) -> None:
        """Go on only if the job was not stopped.

        Raises:
            JobStopped: it was.
            RecordingError: its results cannot be recorded.
        """
        if self._unrecordable is not None:
            raise RecordingError(f"results cannot be recorded: {self._unrecordable}")
        if self._stopped is not None:
            raise JobStopped(self._stopped)

    @property
    def is_released(self) -> bool:
        """Whether nothing may or need be written for the job any more."""
        return self._stopped in (LEASE_LOST, SHUTDOWN)

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """See :func:`factor_search.measure.evaluation.evaluation_key`."""
        identity, original_length = self._prepared.identity, self._prepared.geometry.original_length
        length, stride = self._setting.length, self._setting.stride
        return evaluation_key(identity, original_length, length, stride, factors, samples, documents)

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        """In the order given; all of them are with the pool at once.

        Raises:
            JobStopped: a stop was asked for; with pause, when the candidates begun are recorded.
        """
        self.check()
        places = self._place(candidates, samples)
        known = self._known(places, samples, race)
        results = known.stored
        tasks = self._submit(places, known, samples, race)
        try:
            for place in places:
                while place.key not in results:
                    self._await_result(results)
                self.check()
                yield results[place.key]
        except GeneratorExit:
            self._withdraw(tasks, results, wait=False)
            unwanted = [self._places[key][0] for key in self._begun if key not in results]
            self._record(lambda batch: batch.withdrawn.extend(unwanted))
            raise
        except JobStopped as stop:
            self._withdraw(tasks, results, wait=stop.reason == StateRequest.PAUSE)
            raise
        except FactorSearchError:
            self._withdraw(tasks, results, wait=False)
            raise

    def _place(self, candidates: Sequence[Factors], samples: SampleSet) -> list[Candidate]:
        part = samples.part
        first, generation = self._numbers[part], self._calls[part]
        self._numbers[part] += len(candidates)
        self._calls[part] += 1
        return [
            Candidate(part=part, number=number, generation=generation, key=self.key(factors, samples), factors=factors)
            for number, factors in enumerate(candidates, start=first)
        ]

    def _known(self, places: list[Candidate], samples: SampleSet, race: Race | None) -> KnownResults:
        """What is stored; what that settles is recorded as candidates of this job."""

        def key_of(place: Candidate, documents: int) -> str:
            return self.key(place.factors, samples, documents)

        look_up = partial(known_results, self._store, self._lease.job_id, places, samples, race, key_of)
        known = retry_while_away(look_up, lambda: self.is_released)
        outcomes = known.stored | known.cut
        reused = [_done(place, outcomes[place.key], reused=True) for place in places if place.key in outcomes]
        cut = [Computed(evaluation=evaluation, worker="", attempts=0) for evaluation in known.cut.values()]

        def add(batch: Batch) -> None:
            batch.computed.extend(cut)
            batch.done.extend(reused)

        if reused:
            written = self._record(add)
            for key, evaluation in known.cut.items():
                written.add_done_callback(partial(self._written, key, evaluation, None))
        return known

    def _submit(
        self, places: list[Candidate], known: KnownResults, samples: SampleSet, race: Race | None
    ) -> dict[str, Task]:
        """Hand over what has to be computed, each key once."""
        self._places, self._begun = {}, set()
        for place in places:
            self._places.setdefault(place.key, []).append(place)
        if samples.sha256 not in self._shared:
            self._shared[samples.sha256] = self._backend.share(samples)
        shared = self._shared[samples.sha256]
        tasks = {
            key: Task(
                job_id=self.pool_id,
                key=key,
                setting=self._setting,
                factors=places[0].factors,
                samples=shared,
                race=race,
                known=known.begun.get(key),
            )
            for key, places in self._places.items()
            if key not in known.stored and key not in known.cut
        }
        self._pool.submit(list(tasks.values()))
        return tasks

    def _await_result(self, results: dict[str, Evaluation]) -> None:
        """Wait for the next recorded evaluation."""
        self.check()
        result = self._inbox.get()
        if result is None or result.evaluation is None:
            return
        results[result.key] = result.evaluation
        if result.evaluation.outcome not in (FAILED, WORKER_LOST):
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise EvaluationsFailError(
                f"{self._failures} candidates in a row could not be evaluated, the last because of: {result.error}"
            )

    def _withdraw(self, tasks: dict[str, Task], results: dict[str, Evaluation], *, wait: bool) -> None:
        missing = [task for key, task in tasks.items() if key not in results]
        staying = {task.key for task in self._pool.withdraw(missing, abandon=not wait).result()}
        while staying and self._stopped == StateRequest.PAUSE:
            if (result := self._inbox.get()) is not None:
                staying.discard(result.key)
        self._await_recorder()

    def _await_recorder(self) -> None:
        """What has come to its end is recorded before the job is let go: afterwards it could not be any more."""
        everything, since = self._record(lambda batch: None), time.monotonic()
        while not self.is_released or time.monotonic() - since < RECORDING_SECONDS:
            with contextlib.suppress(Exception):  # whatever it is, it is said elsewhere
                everything.result(timeout=0.5)
            if everything.done():
                return

    def _record(self, add: Callable[[Batch], Any]) -> Written:
        return self._recorder.put(self._lease, add)

    # The job's port to the pool: these are called from the pool's thread.

    def started(self, task: Task) -> None:
        """Record that a worker has the candidate."""
        if (places := self._places.get(task.key)) is not None:
            self._begun.add(task.key)
            self._record(lambda batch: batch.started.append(places[0]))
            if task.known is not None:
                self.losses_so_far(task, list(task.known.losses))

    def losses_so_far(self, task: Task, losses: list[float]) -> None:
        """Record how far a candidate is; what diverges on the way has no figure that a database could hold."""
        finite = list(itertools.takewhile(math.isfinite, losses))
        if finite and (places := self._places.get(task.key)) is not None:
            self._record(lambda batch: batch.losses_so_far.update({places[0]: finite}))

    def done(self, task: Task, evaluation: Evaluation, worker: str, error: str | None) -> None:
        """Record the outcome, and only then tell the search."""
        computed = Computed(evaluation=evaluation, worker=worker, attempts=task.attempts, error=error)
        places = self._places.get(task.key, ())
        done = [_done(place, evaluation, reused=number > 0) for number, place in enumerate(places)]

        def add(batch: Batch) -> None:
            batch.computed.append(computed)
            batch.done.extend(done)

        self._record(add).add_done_callback(partial(self._written, task.key, evaluation, error))

    def dropped(self, task: Task) -> None:
        """The job comes to a stop, and the candidate's worker was lost: it will be evaluated when the job goes on."""
        self._inbox.put(_Result(task.key, None))

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Record what happened."""
        self._record(lambda batch: batch.events.append((kind, data)))

    def _written(self, key: str, evaluation: Evaluation, error: str | None, written: Written) -> None:
        failure = written.exception()
        if failure is None:
            recorded = written.result().get(evaluation.key, evaluation)  # a replay will see what is in the database
            self._inbox.put(_Result(key, recorded, error))
        elif isinstance(failure, LeaseLostError | DatabaseError):
            self.stop(LEASE_LOST)
        else:
            self._unrecordable = one_line(failure)
            self._inbox.put(None)


def _done(place: Candidate, evaluation: Evaluation, *, reused: bool) -> tuple[Candidate, str, bool]:
    """A candidate with its outcome; one that was pruned points at the evaluation on the documents it has seen."""
    return replace(place, key=evaluation.key), evaluation.outcome, reused
