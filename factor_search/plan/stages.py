"""What a plan is made of: a model for each kind of stage, which names the earlier stages whose results it uses."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from factor_search.finetune.spec import FinetuneSpec
from factor_search.spec import (
    AnyBudget,
    AnyObjective,
    AnyStrategy,
    AutoSpec,
    BudgetSpec,
    PerplexitySpec,
    PositiveFloat,
    PositiveInt,
    RacingSpec,
    SpaceSpec,
    Strict,
)

ORIGINAL = "original"
"""Names the plan's own model where a stage's is meant otherwise."""
MODEL = "The stage whose checkpoint is used, or 'original' for the plan's model; null is the last checkpoint before."
FACTORS = "The search whose factors are used; null is the last one before, on this model if there is one."


def _no_initial_tokens(value: Any) -> Any:
    return {"initial_tokens": [0]} | value if isinstance(value, dict) else value


PlanSpace = Annotated[SpaceSpec, BeforeValidator(_no_initial_tokens)]
"""No initial tokens unless they are asked for: no configuration can express them, and most stages write one."""


class _Stage(Strict):
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=60,
        description="By which later stages refer to it; null is the kind and its number, as in search-1.",
    )


class SearchStage(_Stage):
    """Search factors for a length; the first of a plan, or on what an earlier stage made."""

    kind: Literal["search"] = "search"
    target_length: PositiveInt = Field(description="Tokens of context wanted of these factors.")
    model: str | None = Field(None, description=MODEL)
    start_from: str | None = Field(
        None,
        description="The search whose factors, rescaled, this one starts from; null is the last one before on this "
        "model, or on one that it was made from.",
    )
    objective: AnyObjective = PerplexitySpec()
    space: PlanSpace = SpaceSpec(initial_tokens=[0])
    strategy: AnyStrategy = AutoSpec()
    budget: AnyBudget = BudgetSpec()
    racing: RacingSpec | bool | None = Field(None, description="As in a job.")


class FinetuneStage(_Stage):
    """Train the model with factors in force; the result is a checkpoint that plain transformers loads."""

    kind: Literal["finetune"] = "finetune"
    model: str | None = Field(None, description=MODEL)
    factors: str | None = Field(None, description=FACTORS)
    settings: FinetuneSpec = FinetuneSpec()


class AwaitStage(_Stage):
    """Wait until a user hands in a checkpoint that they tuned on a cluster of their own."""

    kind: Literal["await_checkpoint"] = "await_checkpoint"
    model: str | None = Field(None, description=MODEL)
    factors: str | None = Field(None, description=FACTORS)


class ReadjustStage(_Stage):
    """Search factors for the original length on an extended model; they and the long ones are a pair (2402.13753)."""

    kind: Literal["readjust"] = "readjust"
    model: str | None = Field(None, description=MODEL)
    factors: str | None = Field(None, description=FACTORS)
    attention_factor: Literal["long", "search"] | PositiveFloat = Field(
        "long",
        description="Of the short factors: the long ones', since transformers has one for both; searched; or a number. "
        "A pair with two can be loaded only by engines that have a short and a long one.",
    )
    strategy: AnyStrategy = AutoSpec()
    budget: AnyBudget = BudgetSpec()
    racing: RacingSpec | bool | None = Field(None, description="As in a job.")


class PasskeySpec(Strict):
    """Passkey retrieval (2305.16300): every document at every length and depth."""

    lengths: list[PositiveInt] | None = Field(
        None, min_length=1, max_length=32, description="In tokens; null is those of the ladder."
    )
    depths: PositiveInt = Field(5, le=1000, description="How many, evenly from the beginning to the end.")
    digits: PositiveInt = Field(5, ge=2, le=15, description="Of the passkeys.")
    documents: PositiveInt | None = Field(None, description="The first so many held-out documents; null is all.")


class EvaluateStage(_Stage):
    """Measure on the held-out documents: perplexity by length, passkeys, and what short texts lose."""

    kind: Literal["evaluate"] = "evaluate"
    model: str | None = Field(None, description=MODEL)
    factors: str | None = Field(None, description=FACTORS)
    short: str | None = Field(None, description="The readjusting of these factors; null is the last one, if any.")
    lengths: list[Annotated[PositiveInt, Field(ge=2)]] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="In tokens, beside the target; null is the original length, twice that, ...",
    )
    passkey: PasskeySpec | None = Field(PasskeySpec(), description="Null leaves it out.")
    harness: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], max_length=64, description="Tasks of lm-evaluation-harness, which must be installed."
    )


class ExportStage(_Stage):
    """Write the model with the factors in its configuration."""

    kind: Literal["export"] = "export"
    model: str | None = Field(None, description=MODEL)
    factors: str | None = Field(None, description=FACTORS)
    profile: Literal["static", "switching"] = Field(
        "static",
        description="static: the same factors for short and long inputs. switching: readjusted ones up to the original "
        "length; a key-value cache that grows beyond it is then of both kinds, and wrong.",
    )
    short: str | None = Field(None, description="For switching: the readjusting of these factors; null is the last.")


Stage = SearchStage | FinetuneStage | AwaitStage | ReadjustStage | EvaluateStage | ExportStage
StageSpec = Annotated[Stage, Field(discriminator="kind")]
