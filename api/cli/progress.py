"""Progress on the terminal: a bar where there is one, a line for each generation where there is not."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

from factor_search.documents import Document
from factor_search.evaluation import OK
from factor_search.job import JobWatcher
from factor_search.search import SearchState
from factor_search.spec import BudgetSpec


class Progress:
    """Follows one job on standard error."""

    def __init__(self, budget: BudgetSpec) -> None:
        self._budget = budget
        self._bar: tqdm | None = None
        self._generation = -1
        self._interactive = sys.stderr.isatty()

    def watcher(self) -> JobWatcher:
        """The callbacks to hand to the job."""
        return JobWatcher(phase=self._phase, candidate=self._candidate, scored=self._scored, documents=self._documents)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _phase(self, text: str) -> None:
        self.close()
        print(f"{text} ...", file=sys.stderr, flush=True)

    def _documents(self, documents: Iterable[Document]) -> Iterable[Document]:
        bar: Iterable[Document] = tqdm(documents, unit=" documents", disable=None, leave=False)
        return bar

    def _candidate(self, state: SearchState) -> None:
        assert state.best is not None
        best = f"{state.best.summary.perplexity:.4f}" if state.best.outcome == OK else "none"
        speed = state.tokens / max(state.seconds, 1e-9)
        line = f"generation {state.generation}: {len(state.candidates)} candidates, best {best}, {speed:,.0f} tokens/s"
        done = self._share_done(state)
        if done:
            line += f", about {state.seconds * (1 / done - 1):.0f} s left"
        if self._interactive:
            if self._bar is None:
                self._bar = tqdm(total=1.0, bar_format="{percentage:3.0f} %|{bar:20}| {desc}", dynamic_ncols=True)
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(done - self._bar.n)
        elif state.generation != self._generation:
            print(line, file=sys.stderr, flush=True)
            self._generation = state.generation

    def _share_done(self, state: SearchState) -> float:
        """Share spent of the budget that will run out first; 0 where only no_improvement ends the search."""
        budget = self._budget
        limits = (
            (len(state.candidates), budget.candidates),
            (state.tokens, budget.tokens),
            (state.seconds, budget.seconds),
        )
        return min(max((spent / limit for spent, limit in limits if limit), default=0.0), 1.0)

    def _scored(self, part: str, done: int, total: int) -> None:
        if self._interactive:
            if self._bar is None:
                self._bar = tqdm(total=total, unit="candidate", leave=False)
            self._bar.update(done - self._bar.n)
