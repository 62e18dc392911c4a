"""The evaluator of a job in the service: reuses stored evaluations, computes the others on the pool, records all."""

import contextlib
import itertools
import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from factor_search.errors import FactorSearchError, one_line
from factor_search.factors import Factors
from factor_search.measure.evaluation import FAILED, WORKER_LOST, Evaluation, earlier_key, evaluation_key
from factor_search.measure.race import Race
from factor_search.report.tracing import Trace
from factor_search.text.samples import SampleSet
from storage.errors import DatabaseError, LeaseLostError
from storage.evaluations import Batch, Candidate, Computed, EvaluationStore
from storage.jobs import Lease, Spent
from storage.states import StateRequest
from workers.backend import SharedSamples, WorkerBackend
from workers.known_results import KnownResults, known_results
from workers.model_worker import Prepared, Setting
from workers.pool import Pool
from workers.recorder import Recorder, Written
from workers.retrying import retry_while_away
from workers.tasks import Task

T = TypeVar("T")
LEASE_LOST, SHUTDOWN = "lease_lost", "shutdown"
RECORDING_SECONDS = 5.0
"""How long a shutdown waits for results that are still to be recorded."""
FAILURES_IN_A_ROW = 5
"""After this many candidates in a row without a result, each tried more than once, the cause is not the candidates."""


@dataclass(frozen=True)
class _Result:
    """The outcome of a candidate."""

    key: str
    """The key of its evaluation on all documents."""
    evaluation: Evaluation | None
    """As recorded; None if it was dropped while the job was stopping."""
    error: str | None = None
    """The message of a failed attempt."""


class JobStopped(Exception):  # noqa: N818 - not an error
    """This coordinator stops running the job; ``reason`` is pause, cancel, lease_lost or shutdown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EvaluationsFailError(FactorSearchError):
    """Candidate after candidate fails for a reason that does not lie in the candidates."""


class RecordingError(FactorSearchError):
    """The job's results cannot be written into the database."""


class JobEvaluator:
    """Evaluates generations of one job on the pool.

    The search receives an evaluation only after it is stored. So a later run of the job finds everything that the
    search has seen, and repeats it exactly. The evaluator also receives what the pool reports to the job.
    """

    def __init__(
        self,
        lease: Lease,
        store: EvaluationStore,
        recorder: Recorder,
        pool: Pool,
        backend: WorkerBackend,
        trace: Trace,
    ) -> None:
        self._lease = lease
        self._store = store
        self._recorder = recorder
        self._pool = pool
        self._backend = backend
        self._trace = trace
        self._began: dict[str, int] = {}
        """When candidates were started, nanoseconds since 1970, by the key of the task."""
        self.pool_id = f"{lease.job_id}:{lease.attempt}"
        """The job's id in the pool, which an earlier run of the job may not have left yet."""
        self._stopped: str | None = None
        self._unrecordable: str | None = None
        self._refused: FactorSearchError | None = None
        self._begun_as: Mapping[str, str] | None = None
        self._inbox: queue.SimpleQueue[_Result | None] = queue.SimpleQueue()
        """None asks to check whether the job was stopped."""
        self._proposals: dict[str, list[Candidate]] = {}
        """The current generation, by key of the evaluation on all documents."""
        self._started: set[str] = set()
        self._shared: dict[str, SharedSamples] = {}
        self._failures = 0
        self._calls: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    def use(self, prepared: Prepared, setting: Setting) -> None:
        """Set what is evaluated, once the job is prepared."""
        self._prepared = prepared
        self._setting = setting

    def continue_from(self, identity: Mapping[str, str] | None) -> None:
        """Reuse what the job has stored under another identity.

        Args:
            identity: the model and environment that the job began with; None if an earlier version began it.
        """
        self._begun_as = identity if identity is not None else {}

    def stop(self, reason: str) -> None:
        """Stop the search soon; may be called from any thread. The first reason counts, unless it was a pause."""
        if self._stopped in (None, StateRequest.PAUSE):
            self._stopped = reason
        self._inbox.put(None)

    def resume(self) -> None:
        """Withdraw a pause."""
        if self._stopped == StateRequest.PAUSE:
            self._stopped = None

    def check(self) -> None:
        """Check that the job was not stopped.

        Raises:
            JobStopped: it was stopped.
            RecordingError: its results cannot be recorded.
            ModelChangedError: a worker found other files, devices or libraries than those that the job began with.
        """
        if self._unrecordable is not None:
            raise RecordingError(f"results cannot be recorded: {self._unrecordable}")
        if self._refused is not None:
            raise self._refused
        if self._stopped is not None:
            raise JobStopped(self._stopped)

    @property
    def is_released(self) -> bool:
        """Whether this coordinator may no longer, or need no longer, write results of the job."""
        return self._stopped in (LEASE_LOST, SHUTDOWN)

    def persist(self, call: Callable[[], T]) -> T:
        """Read or write, repeating the call until the database answers; an event of the job tells of the wait."""
        back = partial(self._recorder.database_back, [self._lease])
        return retry_while_away(call, lambda: self.is_released, back)

    def key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str:
        """See :func:`factor_search.measure.evaluation.evaluation_key`."""
        return evaluation_key(self._prepared.identity, *self._addressed, factors, samples, documents)

    def earlier_key(self, factors: Factors, samples: SampleSet, documents: int | None = None) -> str | None:
        """The key of an evaluation that the job stored under another identity; None if it has stored none so."""
        if self._begun_as is None:
            return None
        if not self._begun_as:
            return earlier_key(self._prepared.identity, *self._addressed, factors, samples, documents)
        return evaluation_key(self._begun_as, *self._addressed, factors, samples, documents)

    @property
    def _addressed(self) -> tuple[int, int, int | None]:
        return self._prepared.geometry.original_length, self._setting.length, self._setting.stride

    def evaluate_all(
        self, candidates: Sequence[Factors], samples: SampleSet, race: Race | None = None
    ) -> Iterator[Evaluation]:
        """Evaluate candidates at the same time and yield the evaluations in the order of the candidates.

        Raises:
            JobStopped: the job was stopped; after a pause, once the started candidates are recorded.
        """
        self.check()
        proposals = self._propose(candidates, samples)
        known = self._known(proposals, samples, race)
        results = known.stored
        tasks = self._submit(proposals, known, samples, race)
        try:
            for proposal in proposals:
                while proposal.key not in results:
                    self._await_result(results)
                self.check()
                yield results[proposal.key]
        except GeneratorExit:
            self._withdraw(tasks, results, wait=False)
            unwanted = [self._proposals[key][0] for key in self._started if key not in results]
            self._record(lambda batch: batch.withdrawn.extend(unwanted))
            raise
        except JobStopped as stop:
            self._withdraw(tasks, results, wait=stop.reason == StateRequest.PAUSE)
            raise
        except FactorSearchError:
            self._withdraw(tasks, results, wait=False)
            raise

    def _propose(self, candidates: Sequence[Factors], samples: SampleSet) -> list[Candidate]:
        part = samples.part
        first, generation = self._numbers[part], self._calls[part]
        self._numbers[part] += len(candidates)
        self._calls[part] += 1
        return [
            Candidate(part=part, number=number, generation=generation, key=self.key(factors, samples), factors=factors)
            for number, factors in enumerate(candidates, start=first)
        ]

    def _known(self, proposals: list[Candidate], samples: SampleSet, race: Race | None) -> KnownResults:
        """What is stored; candidates that need no worker are recorded as reused."""

        def key_of(proposal: Candidate, documents: int | None) -> str:
            return self.key(proposal.factors, samples, documents)

        def earlier_key_of(proposal: Candidate, documents: int | None) -> str | None:
            return self.earlier_key(proposal.factors, samples, documents)

        job_id = self._lease.job_id
        look_up = partial(known_results, self._store, job_id, proposals, samples, race, key_of, earlier_key_of)
        known = self.persist(look_up)
        outcomes = known.stored | known.cut
        reused = [
            _done(proposal, outcomes[proposal.key], reused=True) for proposal in proposals if proposal.key in outcomes
        ]
        cut = [Computed(evaluation=evaluation, worker="", attempts=0) for evaluation in known.cut.values()]

        def add(batch: Batch) -> None:
            batch.computed.extend(cut)
            batch.done.extend(reused)
            batch.reused.extend(known.stored.values())

        if reused:
            written = self._record(add)
            for key, evaluation in known.cut.items():
                written.add_done_callback(partial(self._written, key, evaluation, None))
        return known

    def _submit(
        self, proposals: list[Candidate], known: KnownResults, samples: SampleSet, race: Race | None
    ) -> dict[str, Task]:
        """Submit what has to be computed to the pool, each key once."""
        self._proposals, self._started = {}, set()
        for proposal in proposals:
            self._proposals.setdefault(proposal.key, []).append(proposal)
        if samples.sha256 not in self._shared:
            self._shared[samples.sha256] = self._backend.share(samples)
        shared = self._shared[samples.sha256]
        tasks = {
            key: Task(
                job_id=self.pool_id,
                key=key,
                setting=self._setting,
                factors=proposals[0].factors,
                samples=shared,
                race=race,
                known=known.partial.get(key),
            )
            for key, proposals in self._proposals.items()
            if key not in known.stored and key not in known.cut
        }
        self._pool.submit(list(tasks.values()))
        return tasks

    def _await_result(self, results: dict[str, Evaluation]) -> None:
        """Wait for the next recorded evaluation, or a stop."""
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
                f"{self._failures} candidates in a row could not be evaluated; reason of the last one: {result.error}"
            )

    def _withdraw(self, tasks: dict[str, Task], results: dict[str, Evaluation], *, wait: bool) -> None:
        missing = [task for key, task in tasks.items() if key not in results]
        staying = {task.key for task in self._pool.withdraw(missing, abandon=not wait).result()}
        while staying and self._stopped == StateRequest.PAUSE:
            if (result := self._inbox.get()) is not None:
                staying.discard(result.key)
        self._await_recorder()

    def _await_recorder(self) -> None:
        """Wait until finished evaluations are recorded, which is impossible once the job is released."""
        everything, since = self._record(lambda batch: None), time.monotonic()
        while not self.is_released or time.monotonic() - since < RECORDING_SECONDS:
            with contextlib.suppress(Exception):  # an error is reported elsewhere
                everything.result(timeout=0.5)
            if everything.done():
                return

    def _record(self, add: Callable[[Batch], Any]) -> Written:
        return self._recorder.put(self._lease, add)

    # What the pool reports; called from the pool's thread.

    def started(self, task: Task) -> None:
        """Record that a worker has started the candidate."""
        self._began[task.key] = time.time_ns()
        if (proposals := self._proposals.get(task.key)) is not None:
            self._started.add(task.key)
            self._record(lambda batch: batch.started.append(proposals[0]))
            if task.known is not None:
                self.losses_so_far(task, list(task.known.losses))

    def losses_so_far(self, task: Task, losses: list[float]) -> None:
        """Record the losses so far, up to the first that is not finite, which a database cannot store."""
        finite = list(itertools.takewhile(math.isfinite, losses))
        if finite and (proposals := self._proposals.get(task.key)) is not None:
            self._record(lambda batch: batch.losses_so_far.update({proposals[0]: finite}))

    def done(self, task: Task, evaluation: Evaluation, worker: str, error: str | None) -> None:
        """Record the outcome, and only then pass it to the search."""
        computed = Computed(evaluation=evaluation, worker=worker, attempts=task.attempts, error=error)
        spent = _spent(evaluation, task.known)
        figures = {"part": evaluation.part, "outcome": str(evaluation.outcome), "documents": len(evaluation.losses)}
        self._trace.evaluation(
            figures | {"worker": worker, "attempts": task.attempts, "error": error}, self._began.pop(task.key, None)
        )
        proposals = self._proposals.get(task.key, ())
        done = [_done(proposal, evaluation, reused=number > 0) for number, proposal in enumerate(proposals)]

        def add(batch: Batch) -> None:
            batch.computed.append(computed)
            batch.done.extend(done)
            batch.spent += spent

        self._record(add).add_done_callback(partial(self._written, task.key, evaluation, error))

    def refused(self, task: Task, error: FactorSearchError) -> None:
        """Stop the job for this reason."""
        self._refused = error
        self._inbox.put(None)

    def dropped(self, task: Task) -> None:
        """Stop waiting for a candidate whose worker was lost while the job stops; it is evaluated after a resume."""
        self._inbox.put(_Result(task.key, None))

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Record an event."""
        self._record(lambda batch: batch.events.append((kind, data)))

    def _written(self, key: str, evaluation: Evaluation, error: str | None, written: Written) -> None:
        failure = written.exception()
        if failure is None:
            recorded = written.result().get(evaluation.key, evaluation)  # a replay reads what is stored
            self._inbox.put(_Result(key, recorded, error))
        elif isinstance(failure, LeaseLostError | DatabaseError):
            self.stop(LEASE_LOST)
        else:
            self._unrecordable = one_line(failure)
            self._inbox.put(None)


def _spent(evaluation: Evaluation, known: Evaluation | None) -> Spent:
    """What an evaluation has cost beyond the one that it continues."""
    tokens = sum(evaluation.tokens) - (sum(known.tokens) if known else 0)
    seconds = evaluation.seconds - (known.seconds if known else 0.0)
    return Spent(max(tokens, 0), max(seconds, 0.0))


def _done(proposal: Candidate, evaluation: Evaluation, *, reused: bool) -> tuple[Candidate, str, bool]:
    """A candidate with its outcome; a pruned one refers to its evaluation on the documents it has seen."""
    return replace(proposal, key=evaluation.key), evaluation.outcome, reused
