"""A stage that readjusts long factors for short texts on an extended model (LongRoPE, 2402.13753, sec. 3.3)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from factor_search.factors_file import FactorsFile, parse_factors
from factor_search.plan.kinds.contract import (
    FACTORS,
    MODEL,
    ORIGINAL,
    Execution,
    Outcome,
    PlanContext,
    Stage,
    StageKind,
    better,
    plus_minus,
)
from factor_search.plan.kinds.search import JobWork, results_table, search_figures
from factor_search.spec import (
    AnyBudget,
    AnyStrategy,
    AttentionFactor,
    AutoSpec,
    BudgetSpec,
    JobSpec,
    KnownFactors,
    PerplexitySpec,
    RacingSpec,
    SpaceSpec,
    WarmStartSpec,
)
from factor_search.spec.named import Flag, Text

if TYPE_CHECKING:
    from factor_search.plan.costs import PlanCosts

LONG = "long"
"""The name under which reports show the long factors at the original length."""
MOST_WINDOWS = 8
"""Windows of the original length, one after the other from the beginning of each document, on which short-context
perplexity is measured: the first alone has too few tokens to tell candidates apart."""
POWERS = (1, 0.75, 0.5, 0.25)
"""Powers of the long factors to start from: a path from them to 1, at which closed forms begin."""


class ReadjustStage(Stage):
    """Search factors for the original length on an extended model; they and the long ones are a pair (2402.13753)."""

    provides: ClassVar[frozenset[str]] = frozenset({"short"})
    needs_search: ClassVar[str | None] = "nothing to readjust"

    kind: Literal["readjust"] = "readjust"
    model: Text | None = Field(None, description=MODEL)
    factors: Text | None = Field(None, description=FACTORS)
    attention_factor: Literal["long", "search"] | AttentionFactor = Field(
        "long",
        description="Of the short factors: the long ones', since transformers has one for both; searched; or a number. "
        "A pair with two can be loaded only by engines that have a short and a long one.",
    )
    strategy: AnyStrategy = AutoSpec()
    budget: AnyBudget = BudgetSpec()
    racing: RacingSpec | Flag | None = Field(None, description="As in a job.")


class ReadjustWork(JobWork):
    """A search at the original length, starting from long factors."""

    kind: Literal["readjust"] = "readjust"


class ReadjustKind(StageKind[ReadjustStage, ReadjustWork]):
    """See :class:`ReadjustStage`."""

    stage = ReadjustStage
    work = ReadjustWork
    execution = Execution.SEARCH

    def complete(self, stage: ReadjustStage, before: Mapping[str, Stage]) -> ReadjustStage:
        """Only an extended model needs it."""
        if stage.model == ORIGINAL:
            raise ValueError(
                f"{stage.name}: nothing to readjust, since no stage before it makes a checkpoint: the unchanged model "
                "reads short texts best with its own RoPE"
            )
        return stage

    def make_work(self, stage: ReadjustStage, context: PlanContext) -> ReadjustWork:
        """A job at the original length, whose space and closed forms are those of the long factors' scale."""
        document = context.factors_of(stage.factors)
        long = parse_factors(document)
        job = JobSpec(
            name=f"{context.name}/{stage.name}",
            model=context.model_of(stage),
            data=context.data,
            target_length=long.model.original_length,
            strategy=stage.strategy,
            budget=stage.budget,
            racing=stage.racing,
            seed=context.seed,
        )
        job = readjustment_job(job, long, str(stage.factors), stage.attention_factor)
        return ReadjustWork(stage=str(stage.name), job=job, long=document)

    def estimate(self, stage: ReadjustStage, costs: "PlanCosts") -> dict[str, Any]:
        """That of the job, which compares with the long factors beside the closed forms."""
        length = costs.geometry.original_length
        job = JobSpec(
            model=costs.model,
            data=costs.data,
            target_length=length,
            objective=PerplexitySpec(stride=length, tokens=short_tokens(length, costs.longest)),
            strategy=stage.strategy,
            budget=stage.budget,
            racing=stage.racing,
        )
        return costs.search(job, costs.forms(length) + 1)

    def figures(self, work: ReadjustWork, outcome: Outcome) -> dict[str, Any]:
        """Those of a search, and the row of the long factors."""
        figures = search_figures(work, outcome)
        long = [row for row in figures["results"] if LONG in (row["name"], row["is"])]
        return figures | {"long": long[0] if long else None}

    def summary(self, figures: dict[str, Any]) -> str:
        """The perplexity at the original length, and how much better it is than with the long factors."""
        found, long = figures["results"][0], figures["long"]
        measured = plus_minus(found["held_out"], found["standard_error"])
        text = f"perplexity {measured} at {figures['target_length']:,} tokens"
        if long is None or long["difference"] is None:
            return f"{text}, with the long factors: no better ones were found" if found["is"] == LONG else text
        return f"{text}; {better(long['difference'], long['difference_standard_error'])} than the long factors"

    def section(self, entry: dict[str, Any]) -> str:
        """The table of results."""
        return results_table(entry)


def readjustment_job(
    job: JobSpec, long: FactorsFile, source: str, attention_factor: Literal["long", "search"] | float = "long"
) -> JobSpec:
    """The job as a search for short factors that make a pair with long ones.

    Bounds, curves and formulas are those of the long factors' scale. Neither of a pair can keep initial tokens.

    Args:
        job: at the original length.
        long: the factors in force for long texts.
        source: their name, for people.
        attention_factor: that of the long factors, searched, or a number.
    """
    lambdas = np.asarray(long.rescale_factors)
    known = [
        KnownFactors(
            source=source if power == 1 else f"{source}, to the power of {power}",
            rescale_factors=(lambdas**power).tolist(),
            attention_factor=long.attention_factor**power,
            scale=long.scale,
            compare_as=LONG if power == 1 else None,
        )
        for power in POWERS
    ]
    length = job.target_length
    objective = PerplexitySpec(stride=length, tokens=short_tokens(length, job.data.least_tokens or length))
    attention = long.attention_factor if attention_factor == "long" else attention_factor
    space = SpaceSpec(initial_tokens=[0], attention_factor=attention, scale=long.scale)
    return job.model_copy(update={"objective": objective, "space": space, "warm_start": WarmStartSpec(factors=known)})


def short_tokens(original_length: int, document_tokens: int) -> int:
    """Tokens at the beginning of a document, in whole windows of the original length, that short contexts use.

    Args:
        original_length: of the model, in tokens.
        document_tokens: that every document has.
    """
    return original_length * max(1, min(MOST_WINDOWS, document_tokens // original_length))


def readjustment_for(stage: Stage, model: str, factors: str, before: Mapping[str, Stage]) -> str | None:
    """The readjustment that belongs to the factors a stage uses: the one it names in ``short``, or the last that fits.

    Raises:
        ValueError: the one it names is for other factors or another model.
    """
    readjusted = {name: one for name, one in before.items() if isinstance(one, ReadjustStage)}
    fitting = [name for name, one in readjusted.items() if (one.model, one.factors) == (model, factors)]
    named: str | None = getattr(stage, "short", None)
    if named is not None and named not in fitting:
        other = readjusted[named]
        raise ValueError(
            f"{stage.name}: {other.name} readjusts {other.factors} on {other.model}, not {factors} on {model}"
        )
    return named or (fitting[-1] if fitting else None)


KIND = ReadjustKind()
