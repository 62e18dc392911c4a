"""A stage that waits for a checkpoint that a user tunes elsewhere."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from factor_search.plan.kinds.contract import (
    FACTORS,
    MODEL,
    Execution,
    FactorsDocument,
    Outcome,
    PlanContext,
    Stage,
    StageKind,
    Work,
    content_of,
)
from factor_search.plan.kinds.export import check_no_initial_tokens
from factor_search.spec import ModelSpec
from factor_search.spec.named import Text


class AwaitStage(Stage):
    """Wait until a user supplies a checkpoint that they tuned on a cluster of their own."""

    provides: ClassVar[frozenset[str]] = frozenset({"model"})
    needs_search: ClassVar[str | None] = "nothing to tune a checkpoint with"

    kind: Literal["await_checkpoint"] = "await_checkpoint"
    model: Text | None = Field(None, description=MODEL)
    factors: Text | None = Field(None, description=FACTORS)


class AwaitWork(Work):
    """A checkpoint to wait for, tuned from a model with factors in force."""

    kind: Literal["await_checkpoint"] = "await_checkpoint"
    model: ModelSpec
    factors: FactorsDocument

    def _identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"kind", "model"}) | {"factors": content_of(self.factors)}


class AwaitKind(StageKind[AwaitStage, AwaitWork]):
    """See :class:`AwaitStage`."""

    stage = AwaitStage
    work = AwaitWork
    execution = Execution.CHECKPOINT

    def check(self, stage: AwaitStage, before: Mapping[str, Stage]) -> None:
        """A configuration cannot hold initial tokens."""
        check_no_initial_tokens(stage, stage.factors, before)

    def make_work(self, stage: AwaitStage, context: PlanContext) -> AwaitWork:
        """The model to tune, and the factors to tune it with."""
        return AwaitWork(
            stage=str(stage.name), model=context.model_of(stage), factors=context.factors_of(stage.factors)
        )

    def figures(self, work: AwaitWork, outcome: Outcome) -> dict[str, Any]:
        """All of them."""
        return dict(outcome.report)

    def summary(self, figures: dict[str, Any]) -> str:
        """Where the checkpoint is."""
        return f"continues with {figures['checkpoint']}"


KIND = AwaitKind()
