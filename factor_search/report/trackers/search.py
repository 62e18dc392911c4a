"""What a search, or another stage of a plan, reports to trackers."""

import contextlib
import json
import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factor_search.errors import TrackerError
from factor_search.files.atomic import write_text
from factor_search.measure.evaluation import OK
from factor_search.report.document import build_factors_file
from factor_search.report.page import render
from factor_search.report.tracing import traced_search
from factor_search.report.trackers.contract import RunName, Value
from factor_search.report.trackers.registry import FOLDER, check_installed
from factor_search.report.trackers.tracking import Tracking, Warn
from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.search.selection import JobResult, JobWatcher
from factor_search.spec import JobSpec, TrackerKind, check_no_webhooks

RESULTS = ("held_out", "standard_error", "validation", "difference", "difference_standard_error")
GEOMETRY = ("architecture", "rope_theta", "rotary_dim", "original_length", "base_rope_type")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedSearch:
    """A search that reports to trackers."""

    tracking: Tracking
    watcher: JobWatcher

    def conclude(self, result: JobResult, report: dict[str, Any]) -> None:
        """Report the result, and end the run."""
        if self.tracking:
            report_result(self.tracking, result, report)
        self.tracking.end("interrupted" if result.interrupted else "finished")


@contextlib.contextmanager
def tracked_search(
    spec: JobSpec, out: Path, watcher: JobWatcher | None = None, *, group: str | None = None
) -> Iterator[TrackedSearch]:
    """Report a search in this process to its trackers, for a bounded time at its end, and trace it.

    Args:
        spec: the search.
        out: folder of its results, where trackers keep their files too.
        watcher: receives the progress as well.
        group: the plan that the search is a stage of.

    Raises:
        TrackerError: the package of a tracker is not installed.
        SpecError: there are webhooks, which no service would send.
    """
    check_no_webhooks(spec.webhooks)
    with (
        tracked(spec.trackers, spec.name, out, group=group) as tracking,
        traced_search(spec.name, watch(tracking, watcher or JobWatcher())) as watching,
    ):
        yield TrackedSearch(tracking, watching)


def check_reports_nowhere(spec: JobSpec) -> None:
    """Refuse a search without a folder for its results if it reports to anything.

    Raises:
        TrackerError: trackers keep files there.
        SpecError: there are webhooks, which no service would send.
    """
    check_no_webhooks(spec.webhooks)
    if spec.trackers:
        raise TrackerError("trackers keep files beside the results: give out, the folder of the results")


@contextlib.contextmanager
def tracked(
    kinds: Sequence[TrackerKind], name: str, out: Path, *, group: str | None = None, warn: Warn = logger.warning
) -> Iterator[Tracking]:
    """A run in trackers, which ends with the block: as failed or interrupted, unless it was said before.

    Raises:
        TrackerError: the package of a tracker is not installed.
    """
    check_installed(kinds)
    folder = out / FOLDER
    tracking = Tracking(kinds, lambda: RunName(id=_run_id(folder), name=name, group=group, folder=folder), warn)
    try:
        yield tracking
    except KeyboardInterrupt:
        tracking.end("interrupted")
        raise
    except BaseException:
        tracking.end("failed")
        raise
    finally:
        tracking.end("finished")
        tracking.wait()


def _run_id(folder: Path) -> str:
    """The id of the run in a folder, which is made if it is new."""
    file = folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8").strip()


def watch(tracking: Tracking, watcher: JobWatcher) -> JobWatcher:
    """The same callbacks, which report to trackers too; the watcher itself without trackers."""
    if not tracking:
        return watcher
    search = _Search(tracking)

    def problem(problem: SearchProblem) -> None:
        search.begin(problem)
        watcher.problem(problem)

    def candidate(state: SearchState) -> None:
        search.candidate(state)
        watcher.candidate(state)

    return replace(watcher, problem=problem, candidate=candidate)


class _Search:
    """Reports the candidates of one search."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._forms: dict[str, tuple[object, ...]] = {}
        """The closed forms, and the candidates that they are nearest to."""
        self._references: dict[str, float | None] = {}
        """Perplexity of those that are known, a line beside the candidates."""

    def begin(self, problem: SearchProblem) -> None:
        """Report the parameters."""
        self._tracking.parameters(parameters(problem))
        space = problem.space
        self._forms = {name: (form, space.factors(space.project(form))) for name, form in problem.forms.items()}

    def candidate(self, state: SearchState) -> None:
        """Report the last evaluation."""
        evaluation, best = state.evaluations[-1], state.best
        best_perplexity = best.summary.perplexity if best is not None and best.outcome == OK else None
        perplexity = evaluation.summary.perplexity if evaluation.outcome == OK else None
        self._references |= {
            f"closed_form_{name}": perplexity for name, same in self._forms.items() if evaluation.factors in same
        }
        figures = {
            "loss": evaluation.summary.loss if evaluation.losses else None,
            "perplexity": perplexity,
            "best_perplexity": best_perplexity,
            "documents": len(evaluation.losses),
            "seconds": evaluation.seconds,
        }
        self._tracking.figures(drawn(figures | self._references), "candidate", len(state.evaluations))
        if best_perplexity is not None:
            self._tracking.figures({"best_perplexity": best_perplexity}, "tokens", state.tokens)


def parameters(problem: SearchProblem) -> dict[str, Value]:
    """The specification and the model's geometry on one level."""
    spec = problem.spec.model_dump(mode="json", exclude={"trackers", "webhooks"})
    geometry = {key: getattr(problem.geometry, key) for key in GEOMETRY}
    return flattened(spec) | flattened(geometry, "geometry.")


def flattened(document: Mapping[str, object], prefix: str = "") -> dict[str, Value]:
    """A JSON document as one level, with keys such as ``budget.candidates``; lists are texts."""
    flat: dict[str, Value] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float | None) else json.dumps(value)[:500]
    return flat


def drawn(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those that can be drawn."""
    return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}


def report_result(tracking: Tracking, result: JobResult, report: dict[str, Any]) -> None:
    """Report the winner, the comparison on held-out documents, and the files."""
    rows = report["results"]
    figures = {f"held_out_{row['name']}": row["held_out"] for row in rows}
    tracking.figures(drawn(figures), "end", len(result.state.evaluations))
    tracking.table("held_out", ("name", *RESULTS), [[row["name"], *(row[key] for key in RESULTS)] for row in rows])
    factors = result.winning_factors
    tracking.table("rescale_factors", ("pair", "rescale factor"), list(enumerate(factors.rescale_factors)))
    tracking.file("factors.json", lambda: json.dumps(build_factors_file(result).as_json(), indent=1))
    tracking.file("report.json", lambda: json.dumps(report, indent=1))
    tracking.file("report.html", lambda: render(report))


def on_progress(tracking: Tracking, then: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """What receives the progress of a stage, and reports the steps of a fine-tuning or measurement to trackers."""

    def receive(progress: dict[str, Any]) -> None:
        if tracking and isinstance(step := progress.get("step"), int):
            numbers = {
                key: value for key, value in progress.items() if isinstance(value, int | float) and key != "step"
            }
            tracking.figures(drawn(numbers), "step", step)
        then(progress)

    return receive
