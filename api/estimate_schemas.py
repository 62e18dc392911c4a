"""Answers of the REST interface about estimates."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class SampledDocument(_Value):
    """A document, or a piece of one."""

    file: str
    tokens: int = Field(description="That are read of it.")


class SplitDocuments(_Value):
    """How documents are split."""

    search: list[SampledDocument]
    validation: list[SampledDocument]
    held_out: list[SampledDocument]


class EvaluationCost(_Value):
    """One candidate on all search documents."""

    tokens: int = Field(description="Scored.")
    operations: float | None = Field(description="Floating-point operations.")
    seconds: float | None = Field(description="On one worker.")


class MemoryNeeded(_Value):
    """Bytes of one worker: of its process on a CPU, of the device on a GPU."""

    weights: int | None
    activations: int | None
    peak: int | None = Field(description="At most, with the libraries and while weights are loaded.")
    available: int | None = Field(description="What a worker can use beside the others of its machine.")


class SearchCost(_Value):
    """The search itself."""

    candidates: int
    full_evaluations: float = Field(description="Evaluations of some documents count as their share.")
    tokens: int
    seconds: float | None


class PartCost(_Value):
    """Evaluations on other documents than those of the search."""

    model_config = ConfigDict(extra="allow")

    evaluations: float | None = Field(None, description="Candidates and closed forms.")
    tokens: int
    seconds: float | None


class Loading(_Value):
    """Loading the model, and reading the documents."""

    seconds: float | None


class TrainingCost(_Value):
    """A fine-tuning."""

    steps: int
    tokens: int
    operations: float | None
    seconds: float | None


class Total(_Value):
    """Everything together."""

    tokens: int | None
    seconds: float | None


class SpeedUsed(_Value):
    """What the seconds follow from."""

    device: str
    tokens_per_second: float | None = Field(description="Scored by one worker.")
    calibrated: bool = Field(description="Whether it was measured; otherwise the seconds are rough.")
    source: str = Field(description="measured, recorded (by a worker), earlier (of a finished job) or assumed.")


class _Cost(_Value):
    evaluation: EvaluationCost | None = None
    memory: MemoryNeeded | None = None
    search: SearchCost | None = None
    validation: PartCost | None = None
    held_out: PartCost | None = None
    training: TrainingCost | None = None
    loading: Loading | None = None
    total: Total
    speed: SpeedUsed | None = None
    workers: int | None = Field(None, description="That evaluate at the same time.")
    fits: bool | None = Field(
        None, description="Whether the peak fits into the memory, with a quarter to spare for the estimate's error."
    )
    largest_length: int | None = Field(
        None, description="Tokens of the longest window that fits, if this one does not; null if no shorter one would."
    )
    too_large: str | None = Field(None, description="If it does not fit: what is too large, or what would fit.")
    notes: list[str] = Field(description="What was assumed, and why something is null.")


class StageEstimate(_Cost):
    """What a stage of a plan will cost."""

    name: str
    kind: str


class Estimate(_Cost):
    """What a job will cost, or a plan, which has `stages` and null in the place of what only a job has."""

    documents: SplitDocuments | None = None
    stages: list[StageEstimate] | None = None

    def as_json(self) -> dict[str, Any]:
        """The answer as JSON."""
        return self.model_dump(mode="json")
