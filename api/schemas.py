"""Answers of the REST interface; the Python client returns the same values."""

import math
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from factor_search.measure.request import MEASURED
from factor_search.plan.kinds import KINDS
from storage.states import ENDED, CandidateState, JobState, StateRequest

EXAMPLE_ID = "0199c3a7d2f44b1e9a0c3d55"
EXAMPLE_PLAN_ID = f"p{EXAMPLE_ID}"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must consist of printable characters")
    return text


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(_Value):
    """The progress of a job."""

    phase: str = Field("", description="The current step, in words.")
    generation: int = Field(0, description="Generation that is being evaluated, from 0.")
    candidates: int = Field(0, description="Distinct candidates evaluated so far.")
    candidates_budget: int | None = Field(None, description="How many there may be.")
    evaluations: int = Field(
        0, description="Of candidates; one that is continued on more documents is evaluated again."
    )
    tokens: int = Field(0, description="Tokens scored during the search.")
    seconds: float = Field(0.0, description="Seconds of evaluation during the search.")
    best_perplexity: float | None = Field(
        None,
        description="Of the best candidate evaluated on all search documents; of answers, if these are the objective.",
    )
    closed_form: str | None = Field(
        None, description="The closed form with the lowest perplexity among those evaluated on all search documents."
    )
    closed_form_perplexity: float | None = Field(None, description="Of that closed form, on the same documents.")
    share: float = Field(0.0, description="Share of the work that is done, 0 to 1.")
    workers: int = Field(0, description="Workers evaluating for this job.")
    scored: int | None = Field(None, description="Candidates scored in the present phase after the search.")
    to_score: int | None = Field(None, description="How many are to be scored in it.")
    step: int | None = Field(None, description="Steps done, of a job that runs as one task on one worker.")
    steps: int | None = Field(None, description="How many there are.")
    loss: float | None = Field(None, description="Of the last step of a fine-tuning, nats per token.")

    @field_validator("best_perplexity", "closed_form_perplexity", "loss", mode="before")
    @classmethod
    def _only_finite(cls, value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value


class Cost(_Value):
    """What devices have done for a job or a stage; evaluations that were known from before cost nothing."""

    tokens: int = Field(0, description="Scored by evaluations, or read by a training.")
    device_seconds: float = Field(0.0, description="Computed by devices.")


class Links(_Value):
    """Where the rest of a job is, as paths on the same server."""

    self: str = Field(description="The job.")
    events: str = Field(description="Its events so far and those to come, as server-sent events.")
    evaluations: str = Field(description="Its candidates with their evaluations.")
    factors: str = Field(description="The factors it found, once it is finished.")
    report: str = Field(description="The report, once it is finished.")
    dashboard: str = Field(description="The page of its searches.")


class Job(_Value):
    """A submitted specification and its state."""

    id: str = Field(description="Sorts by time of submission.", examples=[EXAMPLE_ID])
    name: str = Field(description="As in the specification.", examples=["llama-8x"])
    kind: str = Field(
        description="What it does. Only searches and readjustments have evaluations, factors and a report.",
        json_schema_extra={"enum": [*KINDS]},
    )
    plan: str | None = Field(description="Id of the plan that it is a stage of.", examples=[EXAMPLE_PLAN_ID])
    stage: str | None = Field(description="Name of that stage.", examples=["search-1"])
    state: str = Field(
        description="Where it is between submission and end.",
        json_schema_extra={"enum": [*JobState]},
    )
    request: str | None = Field(
        description="What its coordinator has been asked to do but has not done yet.",
        json_schema_extra={"enum": [*StateRequest, None]},
    )
    note: str | None = Field(
        description="What prevents progress, if anything does; in the answer to a submission, also what was assumed of "
        "the model."
    )
    submitted_at: datetime
    started_at: datetime | None = Field(description="When it was first claimed.")
    ended_at: datetime | None = Field(description="When it finished, failed or was cancelled.")
    submitted_by: str | None = Field(None, description="Name of the key by which it was submitted.", examples=["anna"])
    kept: str | None = Field(None, description="The name under which it is kept when others are aged out.")
    coordinator: str | None = Field(description="The coordinator that runs it, or ran it last.")
    progress: Progress | None = Field(description="Null until a coordinator has started it.")
    events: int = Field(0, description="Number of its last event.", examples=[12])
    error: str | None = Field(description="Why it failed.")
    cost: Cost = Field(Cost(), description="So far.")
    spec: dict[str, Any] | None = Field(
        None,
        description="The specification of a search, with all defaults filled in; the work of another kind. Lists "
        "leave it out.",
    )
    links: Links

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED


class JobPage(_Value):
    """Jobs, newest first."""

    jobs: list[Job]
    next: str | None = Field(description="Cursor of the next page; null on the last.")


class Evaluation(_Value):
    """A candidate of a job, and its evaluation as soon as there is one."""

    number: int = Field(description="In the order proposed within its part, from 0.")
    generation: int
    part: str = Field(json_schema_extra={"enum": [*MEASURED]})
    state: str = Field(description="Withdrawn: no longer wanted.", json_schema_extra={"enum": [*CandidateState]})
    outcome: str | None = Field(
        description="ok, pruned (stopped before the last document), diverged, out_of_memory, worker_lost, timed_out or "
        "failed; null before it is known.",
        examples=["ok"],
    )
    documents: int = Field(description="How many were evaluated so far; if pruned, the first of all.", examples=[16])
    perplexity: float | None = Field(
        description="exp(loss); null unless ok or pruned, and finite, and for divergences. Of a pruned candidate it "
        "does not compare with that of others on more documents.",
        examples=[5.25],
    )
    loss: float | None = Field(
        description="Mean over all scored tokens of the documents evaluated, nats; null unless ok or pruned.",
        examples=[1.6582],
    )
    losses: list[float] = Field(description="Mean loss of each document so far, nats per scored token.")
    tokens: list[int] = Field(description="Tokens scored in each document.")
    losses_at: dict[str, list[float]] = Field(
        description="The same within the first n tokens of each document, for several lengths n; empty where only "
        "some tokens are scored."
    )
    rescale_factors: list[float] = Field(description="lambda_i of each rotary pair.")
    initial_tokens: int = Field(description="Leading positions that keep the model's own RoPE.")
    attention_factor: float = Field(description="Multiplies cos and sin.")
    key: str = Field(description="Content address of the evaluation: equal keys mean equal results.")
    seconds: float | None = Field(description="Spent computing it.")
    worker: str | None = Field(description="Where it was computed.")
    attempts: int | None = Field(description="How many times it was tried.")
    reused: bool = Field(description="Whether the result was known from before.")
    error: str | None = Field(description="What a failed attempt said.")


class EvaluationPage(_Value):
    """Evaluations in the order proposed."""

    evaluations: list[Evaluation]
    next: int | None = Field(description="What to give as `after` for the next page; null where there are no more yet.")


class Event(_Value):
    """One event of a job or plan; the data of a server-sent event."""

    number: int = Field(description="From 1, without gaps; the event's id.")
    at: datetime
    kind: str = Field(description="submitted, claimed, waiting, phase, progress, worker_lost, ..., finished, failed.")
    data: dict[str, Any] = Field(description="Depends on the kind; for progress it is what a job's progress is.")


class StoredItem(_Value):
    """A job outside plans, or a plan, with the space it takes."""

    kind: str = Field(description="job or plan.")
    id: str
    name: str
    state: str
    submitted_at: datetime
    ended_at: datetime | None = Field(description="Null while it has not ended; then it cannot be deleted.")
    kept: str | None = Field(description="The name under which it is kept, whatever its age.")
    database_bytes: int = Field(description="About, with the evaluations that it had computed.")
    folder_bytes: int = Field(description="Of its folders in the work folder; plans with the same work share them.")


class UnusedFolder(_Value):
    """A folder in the work folder that no job and no plan refers to."""

    name: str
    bytes: int


class StorageReport(_Value):
    """What the service stores."""

    database_bytes: int = Field(description="Size of the database.")
    free_bytes: int = Field(description="Of them, free for new records (SQLite).")
    evaluations: int = Field(description="How many are stored.")
    folder_bytes: int = Field(description="Of all jobs' folders in the work folder.")
    unused_folders: list[UnusedFolder] = Field(description="Removed by the next deletion by age.")
    items: list[StoredItem] = Field(description="Jobs and plans, newest first.")
    next: str | None = Field(description="Cursor of the next page; null on the last one.")


class Prune(BaseModel):
    """What is to be deleted."""

    model_config = ConfigDict(extra="forbid")

    older_than_days: float = Field(ge=0, le=36_500, description="Only what ended longer ago.")
    dry_run: bool = Field(False, description="Only tell what would be deleted.")


class Pruned(_Value):
    """What was deleted, or would be."""

    items: list[StoredItem] = Field(description="Jobs and plans.")
    folders: list[str] = Field(description="Folders in the work folder that nothing refers to any more.")
    folder_bytes: int = Field(description="Freed in the work folder; folders in use stay.")
    dry_run: bool
    more: bool = Field(False, description="Whether the time of one request was over before all was looked at.")


class Keep(BaseModel):
    """Under which name a job or plan is kept."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(_printable)] | None = Field(
        min_length=1, max_length=100, description="1 to 100 printable characters; null: it is not kept any more."
    )


class Health(_Value):
    """The process answers."""

    status: str = Field(examples=["ok"])
    version: str = Field(description="Of factor-search.", examples=["0.1.0"])


class Readiness(_Value):
    """The server can serve."""

    status: str = Field(examples=["ready"])
    database: str = Field(
        description="Always reachable; otherwise the answer is 503, and says whether the database is away, malformed, "
        "deleted, locked, full or read-only.",
        examples=["reachable"],
    )
    coordinators: int = Field(description="Alive now; without one, jobs wait.")
    age_seconds: float = Field(description="Since the database was looked at; beyond 10 the answer is 503.")


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time in UTC, to the millisecond."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def finite(value: Any) -> Any:
    """The same JSON value with null where a number is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value
