"""Progress on the terminal: a bar where there is one, a line for each generation where there is not."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from factor_search.measure.evaluation import OK
from factor_search.plan.kinds.contract import Work
from factor_search.plan.kinds.search import JobWork
from factor_search.plan.run import PlanWatcher
from factor_search.search.loop import SearchState
from factor_search.search.selection import JobWatcher
from factor_search.spec import BudgetSpec
from factor_search.text.documents import Document

LINES = 10
"""Printed of the steps of a stage where there is no terminal."""


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


class PlanProgress:
    """Follows the stages of one plan on standard error."""

    def __init__(self) -> None:
        self._search: Progress | None = None
        self._told = ""
        self._bar: tqdm | None = None
        self._interactive = sys.stderr.isatty()

    def watcher(self) -> PlanWatcher:
        """The callbacks to hand to the plan."""
        return PlanWatcher(stage=self._stage, job=self._job, progress=self._heard)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._search is not None:
            self._search.close()
            self._search = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _stage(self, number: int, work: Work, known: bool) -> None:
        self.close()
        print(f"[{number + 1}] {work.stage}{': known from before' if known else ''}", file=sys.stderr, flush=True)

    def _job(self, work: JobWork) -> JobWatcher:
        self._search = Progress(work.job.budget)
        return self._search.watcher()

    def _heard(self, told: dict[str, Any]) -> None:
        phase = told.get("phase", self._told)
        if phase != self._told:
            self.close()
            self._told = phase
            print(f"{phase} ...", file=sys.stderr, flush=True)
        if "step" not in told:
            return
        step, steps = told["step"], told["steps"]
        loss = f", loss {told['loss']:.4f}" if "loss" in told else ""
        if self._interactive:
            if self._bar is None:
                self._bar = tqdm(total=steps, leave=False)
            self._bar.set_description_str(f"step {step} of {steps}{loss}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif step * LINES // steps != (step - 1) * LINES // steps:
            print(f"step {step} of {steps}{loss}", file=sys.stderr, flush=True)
