"""Requests and answers of the REST interface about plans; the Python client returns the same values."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import EXAMPLE_ID, EXAMPLE_PLAN_ID, Cost, Progress
from factor_search.plan.kinds import KINDS
from storage.states import ENDED, PlanState, StageState, StateRequest


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlanStage(_Value):
    """A stage of a plan and its state."""

    name: str = Field(examples=["search-1"])
    kind: str = Field(json_schema_extra={"enum": [*KINDS]})
    state: str = Field(
        description="Pending: the stages before it have not finished. Waiting: for a checkpoint.",
        json_schema_extra={"enum": [*StageState]},
    )
    job: str | None = Field(description="Id of the job that performs it, or has performed it.", examples=[EXAMPLE_ID])
    reused: bool = Field(description="Whether that job is an earlier one with identical work, of this plan or another.")
    cost: Cost = Field(Cost(), description="So far, with jobs of it that failed.")
    model: str | None = Field(description="Folder of the checkpoint that it made, or that was supplied.")


class PlanLinks(_Value):
    """Where the rest of a plan is, as paths on the same server."""

    self: str = Field(description="The plan.")
    events: str = Field(description="Its events so far and those to come, as server-sent events.")
    factors: str = Field(description="The factors for its last model so far.")
    report: str = Field(description="What each finished stage gained.")


class Plan(_Value):
    """A submitted plan and its state."""

    id: str = Field(description="Sorts by time of submission; begins with p.", examples=[EXAMPLE_PLAN_ID])
    name: str = Field(description="As in the specification.", examples=["llama-64x"])
    state: str = Field(
        description="Where it is between submission and end; waiting is for a checkpoint to be supplied.",
        json_schema_extra={"enum": [*PlanState]},
    )
    request: str | None = Field(
        description="What the coordinator of its job has been asked to do but has not done yet.",
        json_schema_extra={"enum": [StateRequest.PAUSE, None]},
    )
    note: str | None = Field(
        description="What prevents progress, if anything does; in the answer to a submission, also what was assumed of "
        "the model."
    )
    submitted_at: datetime
    ended_at: datetime | None = Field(description="When it finished, failed or was cancelled.")
    submitted_by: str | None = Field(None, description="Name of the key by which it was submitted.", examples=["anna"])
    kept: str | None = Field(None, description="The name under which it is kept when others are aged out.")
    stage: str | None = Field(description="Name of the present stage; null once all have finished.")
    stages: list[PlanStage]
    progress: Progress | None = Field(description="Of the job of the present stage.")
    cost: Cost = Field(Cost(), description="Of all its stages so far.")
    events: int = Field(description="Number of its last event.", examples=[12])
    error: str | None = Field(description="Why it failed, or why a checkpoint was refused.")
    spec: dict[str, Any] | None = Field(None, description="The plan with all stages spelled out. Lists leave it out.")
    links: PlanLinks

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it, unless it is retried."""
        return self.state in ENDED


class PlanPage(_Value):
    """Plans, newest first."""

    plans: list[Plan]
    next: str | None = Field(description="Cursor of the next page; null on the last.")


class Retry(BaseModel):
    """Where to start again."""

    model_config = ConfigDict(extra="forbid")

    stage: str | None = Field(None, description="Name of a stage; null is the first that has not finished.")


class Checkpoint(BaseModel):
    """A checkpoint that was fine-tuned elsewhere."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, description="Its folder, as the server sees it.", examples=["/models/tuned"])
