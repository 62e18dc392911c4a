"""The states of jobs, plans, stages and candidates, and the requests to change them: one definition for all of them.

The values are stored and sent. Nothing is imported here, so that the client and the command line can use them without
the rest of the service.
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is between submission and end."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PlanState(StrEnum):
    """Where a plan is between submission and end."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    WAITING = "waiting"
    """For a checkpoint."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StageState(StrEnum):
    """Where a stage of a plan is."""

    PENDING = "pending"
    """The stages before it have not finished."""
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    WAITING = "waiting"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StateRequest(StrEnum):
    """What a coordinator has been asked to do with a running job."""

    PAUSE = "pause"
    CANCEL = "cancel"


class CandidateState(StrEnum):
    """Where a candidate of a job is."""

    RUNNING = "running"
    DONE = "done"
    WITHDRAWN = "withdrawn"
    """No longer wanted."""


ENDED = ("finished", "failed", "cancelled")
"""States in which a job or a plan has ended."""
