"""A stage that searches factors for a length: the first of a plan, or on what an earlier stage made."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from factor_search.errors import SpecError
from factor_search.plan.kinds.contract import (
    MODEL,
    Execution,
    FactorsDocument,
    LocalModel,
    Outcome,
    PlanContext,
    Stage,
    StageKind,
    Work,
    better,
    plus_minus,
)
from factor_search.report.document import measures
from factor_search.search.space import SearchSpace
from factor_search.search.warm_start import known_from
from factor_search.spec import (
    AnyBudget,
    AnyObjective,
    AnyShortWindow,
    AnyStrategy,
    AutoSpec,
    Baselines,
    BudgetSpec,
    JobSpec,
    PerplexitySpec,
    RacingSpec,
    SpaceSpec,
    Tokens,
    WarmStartSpec,
    with_searched_attention,
)
from factor_search.spec.named import Flag, Text

if TYPE_CHECKING:
    from factor_search.plan.costs import PlanCosts

ROW = (
    "name",
    "is",
    "outcome",
    "documents",
    "tokens",
    "validation",
    "held_out",
    "standard_error",
    "difference",
    "difference_standard_error",
    "text_perplexity",
    "text_standard_error",
)
"""What a plan's report keeps of each row of a search's table."""


def _no_initial_tokens(value: Any) -> Any:
    return {"initial_tokens": [0]} | value if isinstance(value, dict) else value


PlanSpace = Annotated[SpaceSpec, BeforeValidator(_no_initial_tokens)]
"""No initial tokens unless they are asked for: no configuration can express them, and most stages write one."""


class SearchStage(Stage):
    """Search factors for a length; the first of a plan, or on what an earlier stage made."""

    provides: ClassVar[frozenset[str]] = frozenset({"factors", "start_from"})

    kind: Literal["search"] = "search"
    target_length: Tokens = Field(description="Tokens of context wanted of these factors.")
    model: Text | None = Field(None, description=MODEL)
    start_from: Text | None = Field(
        None,
        description="The search whose factors, rescaled, this one starts from; null is the last one before on this "
        "model, or on one that it was made from.",
    )
    objective: AnyObjective = PerplexitySpec()
    space: PlanSpace = SpaceSpec(initial_tokens=[0])
    strategy: AnyStrategy = AutoSpec()
    budget: AnyBudget = BudgetSpec()
    racing: RacingSpec | Flag | None = Field(None, description="As in a job.")
    baselines: Baselines = None
    short_window: AnyShortWindow | None = Field(None, description="As in a job.")

    @model_validator(mode="before")
    @classmethod
    def _attention_of_short_windows(cls, given: Any) -> Any:
        return with_searched_attention(given)

    @property
    def lengths_read(self) -> Sequence[int]:
        """The target length."""
        return (self.target_length,)


class JobWork(Work):
    """Work that is a search job: a search, or a readjustment."""

    writes: ClassVar[bool] = False

    job: JobSpec
    long: FactorsDocument | None = Field(
        None, description="Of a readjustment: the long factors that its own make a pair with."
    )

    def _identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "job": self.job.sha256}

    @property
    def budget(self) -> dict[str, Any] | None:
        """The job's, and its baselines: another search with the same evaluations."""
        baselines = {} if self.job.baselines is None else {"baselines": self.job.baselines}
        return self.job.budget.model_dump(mode="json") | baselines

    def as_job(self, plan: str) -> tuple[str, dict[str, Any]]:
        """The job itself."""
        return self.job.name, self.tracked_job().model_dump(mode="json")

    def tracked_job(self) -> JobSpec:
        """The job with the trackers of the plan."""
        return self.job.model_copy(update={"trackers": self.trackers})


class SearchWork(JobWork):
    """A search, run as a job is."""

    kind: Literal["search"] = "search"


class SearchKind(StageKind[SearchStage, SearchWork]):
    """See :class:`SearchStage`."""

    stage = SearchStage
    work = SearchWork
    execution = Execution.SEARCH

    def complete(self, stage: SearchStage, before: Mapping[str, Stage]) -> SearchStage:
        """Start from the last search on this model, or on one that it was made from."""
        return stage.model_copy(update={"start_from": stage.start_from or last_search(str(stage.model), before)})

    def check(self, stage: SearchStage, before: Mapping[str, Stage]) -> None:
        """Lengths must grow."""
        if stage.start_from is None:
            return
        start = before[stage.start_from]
        assert isinstance(start, SearchStage)
        if stage.target_length <= start.target_length:
            raise ValueError(
                f"lengths must grow: {stage.name} is for {stage.target_length} tokens and starts from {start.name}, "
                f"which is for {start.target_length}"
            )

    def check_original_length(self, stage: SearchStage, original_length: int) -> None:
        """The target must be longer."""
        if stage.target_length <= original_length:
            raise ValueError(
                f"lengths must grow: {stage.name} is for {stage.target_length} tokens, not above the original "
                f"length of {original_length}"
            )

    def check_model(self, stage: SearchStage, model: LocalModel) -> None:
        """The target must be longer than the model's original length, and the space must fit the model."""
        original = model.geometry.original_length
        if stage.target_length <= original:
            raise SpecError(
                f"lengths must grow: {stage.name} is for {stage.target_length} tokens, not above the model's "
                f"original length of {original}; with a recipe, give middle_length"
            )
        SearchSpace.build(stage.space, model.geometry, stage.target_length)

    def make_work(self, stage: SearchStage, context: PlanContext) -> SearchWork:
        """A job that starts from the factors of an earlier search."""
        warm_start = WarmStartSpec()
        if stage.start_from is not None:
            start = context.factors_of(stage.start_from)
            warm_start = WarmStartSpec(factors=[known_from(start, stage.start_from)])
        job = JobSpec(
            name=f"{context.name}/{stage.name}",
            model=context.model_of(stage),
            data=context.data,
            target_length=stage.target_length,
            strategy=stage.strategy,
            budget=stage.budget,
            racing=stage.racing,
            baselines=stage.baselines,
            seed=context.seed,
        )
        asked: dict[str, Any] = {"objective": stage.objective, "space": stage.space, "warm_start": warm_start}
        asked["short_window"] = stage.short_window
        return SearchWork(stage=str(stage.name), job=job.model_copy(update=asked))

    def estimate(self, stage: SearchStage, costs: "PlanCosts") -> dict[str, Any]:
        """That of the job."""
        job = JobSpec(
            model=costs.model,
            data=costs.data,
            target_length=stage.target_length,
            strategy=stage.strategy,
            budget=stage.budget,
            racing=stage.racing,
        )
        methods = costs.search_forms(stage.target_length, stage.baselines)
        return costs.search(job.model_copy(update={"objective": stage.objective}), methods)

    def figures(self, work: SearchWork, outcome: Outcome) -> dict[str, Any]:
        """See :func:`search_figures`."""
        return search_figures(work, outcome)

    def summary(self, figures: dict[str, Any]) -> str:
        """The found perplexity, and how much better it is than the best closed form."""
        found, comparison = figures["results"][0], figures["comparison"]
        text = f"{measures(figures)} {plus_minus(found['held_out'], found['standard_error'])} at "
        text += f"{figures['target_length']:,} tokens"
        if not comparison or comparison["difference"] is None:
            return text
        against = "the long factors" if comparison["best_closed_form"] == "long" else comparison["best_closed_form"]
        return f"{text}; {better(comparison['difference'], comparison['standard_error'])} than {against}"

    def section(self, entry: dict[str, Any]) -> str:
        """The table of results."""
        return results_table(entry)


def lineage(model: str, before: Mapping[str, Stage]) -> list[str]:
    """A model's name, that of the one it was made from, ... and the plan's own."""
    names = [model]
    while names[-1] in before:
        names.append(str(before[names[-1]].model))
    return names


def last_search(model: str, before: Mapping[str, Stage]) -> str | None:
    """The last search on a model, or else on the one it was made from, ..."""
    for one in lineage(model, before):
        on_it = [name for name, stage in before.items() if isinstance(stage, SearchStage) and stage.model == one]
        if on_it:
            return on_it[-1]
    return None


def search_named(name: str | None, before: Mapping[str, Stage]) -> SearchStage:
    """The search whose factors a complete stage uses."""
    search = before[str(name)]
    assert isinstance(search, SearchStage)
    return search


def search_figures(work: JobWork, outcome: Outcome) -> dict[str, Any]:
    """What a plan's report keeps of a search."""
    report, factors = outcome.report, outcome.factors or {}
    return {
        "target_length": work.job.target_length,
        "objective": report["objective"],
        "candidates": report["search"]["candidates"],
        "ended_by": report["search"]["ended_by"],
        "results": [{key: row[key] for key in ROW if key in row} for row in report["results"]],
        "comparison": report["comparison"],
        "factors": {key: factors[key] for key in ("scale", "rescale_factors", "initial_tokens", "attention_factor")},
    }


def results_table(entry: dict[str, Any]) -> str:
    """The found factors beside the closed forms, on held-out documents."""
    from factor_search.report.document import number
    from factor_search.report.page import html_table

    shown = ("held_out", "standard_error", "difference", "difference_standard_error")
    rows = [[row["name"], *(number(row[key]) for key in shown)] for row in entry["results"]]
    titles = ["", f"{entry['objective']['measures']}, held-out", "±", "minus found (nats)", "±"]
    return html_table(titles, rows)


KIND = SearchKind()
