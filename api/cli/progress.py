"""The progress of what runs in this process."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from api.cli.display import ProgressDisplay
from api.schemas import Progress
from factor_search.plan.kinds.contract import Work
from factor_search.plan.kinds.search import JobWork
from factor_search.plan.run import PlanWatcher
from factor_search.search.estimate_text import summary
from factor_search.search.loop import SearchState
from factor_search.search.problem import SearchProblem
from factor_search.search.progress import search_progress
from factor_search.search.selection import JobWatcher
from factor_search.text.documents import Document


class JobProgress:
    """Follows a search job on standard error."""

    def __init__(self, display: ProgressDisplay | None = None) -> None:
        self._display = display or ProgressDisplay()
        self._phase = ""
        self._problem: SearchProblem | None = None

    def watcher(self) -> JobWatcher:
        """The callbacks of the job."""
        return JobWatcher(
            phase=self._begin_phase,
            problem=self._begin_search,
            candidate=self._candidate,
            scored=self._scored,
            documents=self._documents,
            estimate=self._estimate,
        )

    def close(self) -> None:
        """Leave the terminal clean."""
        self._display.close()

    def _begin_phase(self, text: str) -> None:
        self._phase = text
        self._display.close()
        self._display.say(f"{text} ...")

    def _begin_search(self, problem: SearchProblem) -> None:
        self._problem = problem
        for note in problem.geometry.notes:
            self._display.say(note)

    def _estimate(self, estimate: dict[str, Any]) -> None:
        self._display.say(summary(estimate))

    def _candidate(self, state: SearchState) -> None:
        assert self._problem is not None
        self._display.show(Progress(phase=self._phase, **search_progress(self._problem, state)))

    def _scored(self, part: str, done: int, total: int) -> None:
        if self._display.live:
            self._display.show(Progress(phase=self._phase, scored=done, to_score=total))

    def _documents(self, documents: Iterable[Document]) -> Iterable[Document]:
        bar: Iterable[Document] = tqdm(documents, unit=" documents", disable=None, leave=False)
        return bar


class PlanProgress:
    """Follows the stages of a plan on standard error."""

    def __init__(self) -> None:
        self._display = ProgressDisplay()
        self._phase = ""

    def watcher(self) -> PlanWatcher:
        """The callbacks of the plan."""
        return PlanWatcher(stage=self._stage, job=self._job, progress=self._report_progress)

    def close(self) -> None:
        """Leave the terminal clean."""
        self._display.close()

    def _stage(self, number: int, work: Work, known: bool) -> None:
        self._display.close()
        self._display.say(f"[{number + 1}] {work.stage}{': known from before' if known else ''}")

    def _job(self, work: JobWork) -> JobWatcher:
        return JobProgress(self._display).watcher()

    def _report_progress(self, report: dict[str, Any]) -> None:
        phase = report.get("phase", self._phase)
        if phase != self._phase:
            self._phase = phase
            self._display.close()
            self._display.say(f"{phase} ...")
        if "step" in report:
            known = {key: report[key] for key in ("step", "steps", "loss", "tokens") if key in report}
            self._display.show(Progress(phase=phase, share=report["step"] / report["steps"], **known))
