"""Shows the progress of a search in a notebook, and plain lines where there is none."""

import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any

from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.search.progress import search_progress
from factor_search.search.selection import JobWatcher

SECONDS = 0.25
"""Between two updates."""
WIDTH, HEIGHT = 320, 60
"""Of the curve, in pixels."""


def notebook_watcher() -> JobWatcher:
    """Build a watcher for :func:`factor_search.search_factors` that shows phase, candidates and the best so far, live.

    It needs IPython, which every notebook has. Elsewhere it prints a line for each phase on standard error.
    """
    progress = _Progress(_shown_in_place())
    return JobWatcher(
        phase=progress.begin, problem=progress.begin_search, candidate=progress.candidate, scored=progress.scored
    )


def _shown_in_place() -> Callable[[str], None] | None:
    """What replaces the HTML that it showed before; None where there is no notebook."""
    try:
        from IPython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        return None
    if get_ipython() is None:
        return None
    handle = display(HTML(""), display_id=True)  # type: ignore[no-untyped-call]
    return lambda html: handle.update(HTML(html))  # type: ignore[no-untyped-call]


class _Progress:
    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show_html = show
        self._phase = ""
        self._problem: SearchProblem | None = None
        self._figures: dict[str, Any] = {}
        self._best: list[float] = []
        self._shown_at = 0.0

    def begin(self, phase: str) -> None:
        self._phase = phase
        if self._show_html is None:
            print(f"{phase} ...", file=sys.stderr, flush=True)
        self._show(self._figures.get("share", 0.0) if phase == "searching" else 0.0, now=True)

    def begin_search(self, problem: SearchProblem) -> None:
        self._problem = problem

    def candidate(self, state: SearchState) -> None:
        assert self._problem is not None
        self._figures = search_progress(self._problem, state)
        if (best := self._figures["best_perplexity"]) is not None:
            self._best.append(best)
        self._show(self._figures["share"])

    def scored(self, part: str, done: int, total: int) -> None:
        self._show(done / total, now=done == total)

    def _show(self, share: float, *, now: bool = False) -> None:
        if self._show_html is None or not (now or time.monotonic() - self._shown_at >= SECONDS):
            return
        self._shown_at = time.monotonic()
        self._show_html(
            f'<div role="status"><progress max="1" value="{share:.4f}"></progress> {escape(self._phase)}'
            f"{_in_words(self._figures)}{_curve(self._best)}</div>"
        )


def _in_words(figures: dict[str, Any]) -> str:
    """The figures of a search, as HTML; nothing before the first candidate."""
    if not figures:
        return ""
    words = f"<br>{figures['candidates']:,} candidates, {figures['tokens']:,} tokens"
    if figures["best_perplexity"] is not None:
        words += f", best perplexity <strong>{figures['best_perplexity']:.4f}</strong>"
    if figures["closed_form_perplexity"] is not None:
        words += f" ({escape(figures['closed_form'])} {figures['closed_form_perplexity']:.4f})"
    return words


def _curve(best: list[float]) -> str:
    """The best perplexity so far by evaluation, as a line without axes; nothing before it has changed."""
    low, high = min(best, default=0.0), max(best, default=0.0)
    if not high > low:
        return ""
    step = WIDTH / (len(best) - 1)
    points = " ".join(
        f"{number * step:.1f},{HEIGHT - 4 - (value - low) / (high - low) * (HEIGHT - 8):.1f}"
        for number, value in enumerate(best)
    )
    return (
        f'<br><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="best perplexity so far">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="2"/></svg>'
    )
