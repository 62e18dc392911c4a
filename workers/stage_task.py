"""The works that one worker does whole, as it does them; imports nothing that a worker does not need."""

from dataclasses import dataclass
from pathlib import Path

from factor_search.plan.checkpoint import accept_checkpoint
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.perform import perform
from workers.folder_lock import locked_folder
from workers.model_worker import ReportProgress

REPORT_EVERY_SECONDS = 1800.0
"""A worker that waits says so anew after so long: one of which nothing is heard for hours counts as stuck."""


@dataclass(frozen=True)
class StageTask:
    """The work of a stage as a worker does it, in a folder of its own."""

    work: Work
    folder: Path

    def __call__(self, report_progress: ReportProgress) -> Outcome:
        """Do it, or go on with it."""
        with locked_folder(self.folder, lambda seconds: report_progress({"phase": waiting(seconds)})):
            return perform(self.work, self.folder, report_progress)


@dataclass(frozen=True)
class CheckpointCheck:
    """The check of a checkpoint that a user hands in."""

    work: AwaitWork
    checkpoint: Path

    def __call__(self, report_progress: ReportProgress) -> Outcome:
        """Load it, and prove that factors reach it."""
        report_progress({"phase": f"loading {self.checkpoint}"})
        return accept_checkpoint(self.work, self.checkpoint)


def waiting(seconds: float) -> str:
    """What is said of a worker that waits for another, which does the same for another plan or was given up."""
    hours = seconds // REPORT_EVERY_SECONDS * REPORT_EVERY_SECONDS / 3600
    return "waiting for another worker that does the same" + (f", since {hours:g} h" if hours else "")
