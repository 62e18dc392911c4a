"""Long-running tasks as a worker runs them; imports only what a worker needs."""

from dataclasses import dataclass
from pathlib import Path

from factor_search.plan.checkpoint import accept_checkpoint
from factor_search.plan.kinds.await_checkpoint import AwaitWork
from factor_search.plan.kinds.contract import Outcome, Work
from factor_search.plan.perform import perform
from workers.folder_lock import locked_folder
from workers.model_worker import ReportProgress

REPORT_EVERY_SECONDS = 1800.0
"""A waiting worker repeats its report after this time, because one without reports for hours counts as stuck."""


@dataclass(frozen=True)
class StageTask:
    """The work of a stage, in its own folder."""

    work: Work
    folder: Path

    def __call__(self, report_progress: ReportProgress) -> Outcome:
        """Do the work, or continue it."""
        with locked_folder(self.folder, lambda seconds: report_progress({"phase": waiting(seconds)})):
            return perform(self.work, self.folder, report_progress)


@dataclass(frozen=True)
class CheckpointCheck:
    """The check of a checkpoint that a user supplies."""

    work: AwaitWork
    checkpoint: Path

    def __call__(self, report_progress: ReportProgress) -> Outcome:
        """Load the checkpoint and verify that factors take effect in it."""
        report_progress({"phase": f"loading {self.checkpoint}"})
        return accept_checkpoint(self.work, self.checkpoint)


def waiting(seconds: float) -> str:
    """The phase of a worker that waits for another one with identical work, for another plan or already abandoned."""
    hours = seconds // REPORT_EVERY_SECONDS * REPORT_EVERY_SECONDS / 3600
    return "waiting for another worker that does the same" + (f", since {hours:g} h" if hours else "")
