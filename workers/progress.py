"""The progress of a running job: stored often, published as events at a readable rate."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.search.progress import search_progress
from factor_search.search.selection import JobWatcher
from factor_search.spec import BudgetSpec
from storage.evaluations import Batch
from storage.jobs import Lease
from workers.pool import Pool
from workers.recorder import Recorder, Written

STORE_SECONDS = 0.25
EVENT_SECONDS = 1.0
REACHED = (
    *("generation", "candidates", "evaluations", "tokens", "seconds"),
    *("best_perplexity", "closed_form", "closed_form_perplexity", "share"),
)


class ProgressWriter:
    """Records the progress of one search job; called from the job's thread."""

    def __init__(
        self,
        lease: Lease,
        budget: BudgetSpec,
        recorder: Recorder,
        pool: Pool,
        earlier: Mapping[str, Any],
        on_phase: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Continue from the figures of an earlier run of the job, which hold until they are reached again."""
        self._on_phase = on_phase
        self._lease = lease
        self._problem: SearchProblem | None = None
        self._recorder = recorder
        self._pool = pool
        self._stored_at = self._event_at = -1e9
        self._generation = 0
        self._progress: dict[str, Any] = {
            "phase": "",
            "generation": 0,
            "candidates": 0,
            "candidates_budget": budget.candidates,
            "evaluations": 0,
            "tokens": 0,
            "seconds": 0.0,
            "best_perplexity": None,
            "closed_form": None,
            "closed_form_perplexity": None,
            "share": 0.0,
            "workers": 0,
            "scored": None,
            "to_score": None,
        }
        self._progress |= {name: earlier[name] for name in REACHED if name in earlier}

    def watcher(self) -> JobWatcher:
        """The callbacks for the search."""
        return JobWatcher(phase=self._phase, problem=self._begin, candidate=self._candidate, scored=self._scored)

    def phase(self, text: str) -> Written:
        """Record a new phase."""
        self._on_phase(text)
        self._progress |= {"phase": text, "scored": None, "to_score": None}
        return self._write([("phase", {"phase": text}), ("progress", self._now())])

    def _phase(self, text: str) -> None:
        self.phase(text)

    def finish(self) -> Written:
        """Record that only the job's final write is left."""
        self._progress |= {"phase": "finished", "share": 1.0, "scored": None, "to_score": None}
        return self._write([("progress", self._now())])

    def _begin(self, problem: SearchProblem) -> None:
        self._problem = problem

    def _candidate(self, state: SearchState) -> None:
        assert self._problem is not None
        now = time.monotonic()
        if len(state.evaluations) < self._progress["evaluations"]:
            return
        self._progress |= search_progress(self._problem, state)
        new_generation = state.generation != self._generation
        if not new_generation and now - self._stored_at < STORE_SECONDS:
            return
        self._generation = state.generation
        publish = now - self._event_at >= EVENT_SECONDS
        self._stored_at = now
        self._event_at = now if publish else self._event_at
        self._write([("progress", self._now())] if publish else [])

    def _scored(self, part: str, done: int, total: int) -> None:
        self._progress |= {"scored": done, "to_score": total}
        self._write([("progress", self._now())])

    def _now(self) -> dict[str, Any]:
        return self._progress | {"workers": self._pool.status()["alive"]}

    def _write(self, events: list[tuple[str, dict[str, Any]]]) -> Written:
        progress = self._now()

        def add(batch: Batch) -> None:
            batch.progress = progress
            batch.events.extend(events)

        return self._recorder.put(self._lease, add)
