"""Progress on standard error: a live bar on a terminal, a plain line from time to time elsewhere."""

import sys
import time

from tqdm import tqdm

from api.schemas import Progress
from factor_search.visible import visible

LINES = 10
"""Printed of a phase that counts candidates or steps, where there is no terminal."""
BAR = "{percentage:3.0f} %|{bar:10}| {desc}"
LEAST_SHARE = 0.005
"""Share of the work that must have been observed before the time left is estimated from it."""


class ProgressDisplay:
    """One line that is kept up to date on a terminal, or lines one below the other."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._printed: tuple[object, ...] | None = None
        self._pace = _Pace()

    def say(self, text: str) -> None:
        """Print a line of text, above the bar if there is one."""
        with tqdm.external_write_mode(file=sys.stderr):
            print(visible(text), file=sys.stderr, flush=True)

    def show(self, progress: Progress, at: float | None = None) -> None:
        """Show how far a job is.

        Args:
            progress: of the job.
            at: when that was, in seconds since 1970; None is now.
        """
        left = self._pace.seconds_left(progress, time.time() if at is None else at)
        if not self.live:
            counts = bool(progress.to_score or progress.step is not None)
            part = (progress.phase if counts else "", progress.generation, int(LINES * progress.share) * counts)
            if part != self._printed:
                self.say(plain_line(progress, left))
            self._printed = part
            return
        if self._bar is None:
            self._bar = tqdm(total=1.0, bar_format=BAR, dynamic_ncols=True, file=sys.stderr)
        self._bar.set_description_str(visible(live_line(progress, left)), refresh=False)
        self._bar.update(share_done(progress) - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Pace:
    """Estimates the time left of a phase from what was done of it while it was watched."""

    def __init__(self) -> None:
        self._phase = ""
        self._share = self._at = 0.0

    def seconds_left(self, progress: Progress, at: float) -> float | None:
        """None as long as too little was observed."""
        share = share_done(progress)
        if progress.phase != self._phase or share < self._share or at < self._at:
            self._phase, self._share, self._at = progress.phase, share, at
        watched, done = at - self._at, share - self._share
        return watched * (1 - share) / done if watched > 0 and done >= LEAST_SHARE else None


def share_done(progress: Progress) -> float:
    """Share of the present phase that is done, 0 to 1."""
    share = (progress.scored or 0) / progress.to_score if progress.to_score else progress.share
    return min(share, 1.0)


def plain_line(progress: Progress, left: float | None) -> str:
    """Progress in words, in the order of a log."""
    if counted := _counted(progress):
        return ", ".join(counted)
    generation = f"generation {progress.generation}: {_candidates(progress)}"
    workers = [f"{progress.workers} worker{'s' * (progress.workers != 1)}"] if progress.workers else []
    return ", ".join([generation, _best(progress), *_speed(progress), *workers, *_left(left)])


def live_line(progress: Progress, left: float | None) -> str:
    """The same with the most important first: a narrow terminal cuts the rest."""
    if counted := _counted(progress):
        return ", ".join([*counted, *_left(left)])
    workers = [f"{progress.workers} worker{'s' * (progress.workers != 1)}"] if progress.workers else []
    first = [_candidates(progress), _best(progress), *_left(left)]
    return ", ".join([*first, *_speed(progress), f"generation {progress.generation}", *workers])


def _counted(progress: Progress) -> list[str]:
    """Of a phase that counts steps, or candidates beside the search; empty during a search."""
    if progress.to_score:
        return [f"{progress.phase}: {progress.scored or 0} of {progress.to_score} candidates"]
    if progress.step is None:
        return []
    counted = [f"{progress.phase}: step {progress.step} of {progress.steps}"]
    return counted if progress.loss is None else [*counted, f"loss {progress.loss:.4f}", f"{progress.tokens:,} tokens"]


def _candidates(progress: Progress) -> str:
    budget = f" of {progress.candidates_budget}" if progress.candidates_budget else ""
    return f"{progress.candidates}{budget} candidates"


def _best(progress: Progress) -> str:
    if progress.best_perplexity is None:
        return "none on all documents yet"
    against = ""
    if progress.closed_form_perplexity is not None:
        against = f" ({progress.closed_form} {progress.closed_form_perplexity:.4f})"
    return f"best {progress.best_perplexity:.4f}{against}"


def _speed(progress: Progress) -> list[str]:
    return [f"{progress.tokens / progress.seconds:,.0f} tokens/s"] if progress.seconds > 0 else []


def _left(seconds: float | None) -> list[str]:
    if seconds is None:
        return []
    if seconds < 100:
        return [f"{seconds:.0f} s left"]
    return [f"{seconds / 60:.0f} min left" if seconds < 6000 else f"{seconds / 3600:.1f} h left"]
