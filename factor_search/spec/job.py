"""The specification of a search job, its short forms, and its identity."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from factor_search.errors import SpecError
from factor_search.files.canonical_json import sha256_of
from factor_search.files.json_documents import explain, read_json
from factor_search.spec.base import STORED, AtMost, Candidates, Count, Int, PositiveFloat, PositiveInt, Strict, Tokens
from factor_search.spec.named import Flag, Text
from factor_search.spec.problem import (
    DataSpec,
    ModelSpec,
    ObjectiveSpec,
    PerplexitySpec,
    ShortWindowSpec,
    SpaceSpec,
    with_searched_attention,
)
from factor_search.spec.reporting import Trackers, Webhooks
from factor_search.spec.strategies import AutoSpec, StrategySpec
from factor_search.spec.warm_start import WarmStartSpec


class RacingSpec(Strict):
    """Stops candidates that fall behind before their last search document."""

    error_rate: float = Field(
        0.01,
        strict=True,
        gt=0,
        lt=0.5,
        description="Probability that a candidate is stopped although it would have beaten the best one so far.",
    )


class BudgetSpec(Strict):
    """Limits of the search, which ends at the first that it reaches."""

    candidates: Candidates | None = Field(200, description="Distinct candidates, including the closed forms.")
    tokens: Annotated[PositiveInt, AtMost(10**15, "tokens")] | None = Field(
        None, description="Tokens scored during the search; with needles, these are answer tokens."
    )
    seconds: Annotated[PositiveFloat, AtMost(1e9, "seconds")] | None = Field(
        None, description="Seconds of evaluation, including stored results."
    )
    no_improvement: Candidates | None = Field(
        None,
        description="End after a generation if the last so many distinct candidates brought no improvement beyond "
        "one standard error of the paired difference over the search documents.",
    )

    @model_validator(mode="after")
    def _bounded(self) -> "BudgetSpec":
        if all(limit is None for limit in (self.candidates, self.tokens, self.seconds, self.no_improvement)):
            raise ValueError("give at least one of 'candidates', 'tokens', 'seconds' and 'no_improvement'")
        return self


class ResourcesSpec(Strict):
    """Resources that a service needs before the job starts; a search in one process ignores them."""

    workers: Count = Field(1, description="Least number of workers.")
    gpus: float = Field(0.0, strict=True, ge=0, le=1, description="GPUs, or share of a GPU, for each worker.")


def _word(key: str) -> Callable[[Any], Any]:
    """Accept a single word instead of an object with one key."""
    return lambda value: {key: value} if isinstance(value, str) else value


def _files(value: Any) -> Any:
    return {"files": [value] if isinstance(value, str) else value} if isinstance(value, str | list) else value


def _objective(value: Any) -> Any:
    value = _word("kind")(value)
    return {"kind": "perplexity"} | value if isinstance(value, dict) else value


def _candidates(value: Any) -> Any:
    return {"candidates": value} if isinstance(value, int) else value


AnyModel = Annotated[ModelSpec, BeforeValidator(_word("id"), json_schema_input_type=ModelSpec | str)]
AnyData = Annotated[DataSpec, BeforeValidator(_files, json_schema_input_type=DataSpec | str | list[str])]
AnyObjective = Annotated[ObjectiveSpec, BeforeValidator(_objective, json_schema_input_type=ObjectiveSpec | str)]
AnyStrategy = Annotated[StrategySpec, BeforeValidator(_word("kind"), json_schema_input_type=StrategySpec | str)]
AnyBudget = Annotated[BudgetSpec, BeforeValidator(_candidates, json_schema_input_type=BudgetSpec | int)]
"""The object, or a word, list or number where that is enough."""


def _names(given: Any) -> Any:
    return [given] if isinstance(given, str) and given != "all" else given


def _limit(given: Any) -> Any:
    return {"at_most": given} if isinstance(given, int | float) and not isinstance(given, bool) else given


AnyShortWindow = Annotated[ShortWindowSpec, BeforeValidator(_limit, json_schema_input_type=ShortWindowSpec | float)]
Baselines = Annotated[
    Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, fail_fast=True)] | Literal["all"] | None,
    BeforeValidator(_names),
    Field(
        description="Closed forms to compare with on the validation and held-out documents, by name, or all of them; "
        "null is the usual ones, and of the others the two that are best on the search documents. The search starts "
        "from all of them in any case.",
    ),
]


class JobSpec(Strict):
    """One search: a model, documents and a target length."""

    name: Text = Field("search", min_length=1, max_length=200, description="A name for people; it has no effect.")
    model: AnyModel
    data: AnyData
    target_length: Tokens = Field(description="Target context length in tokens.")
    objective: AnyObjective = PerplexitySpec()
    space: SpaceSpec = SpaceSpec()
    strategy: AnyStrategy = AutoSpec()
    budget: AnyBudget = BudgetSpec()
    racing: RacingSpec | Flag | None = Field(
        None,
        description="Stop candidates that fall behind. true uses an error rate of 0.01; null is true for auto only.",
    )
    warm_start: WarmStartSpec = WarmStartSpec()
    resources: ResourcesSpec = ResourcesSpec()
    baselines: Baselines = None
    short_window: AnyShortWindow | None = Field(
        None, description="A limit on what the factors cost in texts up to the original length; null sets none."
    )
    seed: Int = Field(0, description="Seed of the search and of the split of the documents.")
    trackers: Trackers = Field([])
    webhooks: Webhooks = Field([])

    @model_validator(mode="before")
    @classmethod
    def _attention_of_short_windows(cls, given: Any) -> Any:
        return with_searched_attention(given)

    @model_validator(mode="after")
    def _short_window_of_perplexity(self) -> "JobSpec":
        if self.short_window is not None and (self.stride is not None or self.objective.kind != "perplexity"):
            raise ValueError(
                "short_window goes with the perplexity of first windows: only then is the loss on the first tokens of "
                "a document measured; leave 'objective' out"
            )
        return self

    @model_validator(mode="after")
    def _strategy_of_forms(self) -> "JobSpec":
        if self.space.form is not None and self.strategy.kind != "auto":
            raise ValueError(
                f"space.form {self.space.form} is searched by the strategy auto only, not by {self.strategy.kind}: "
                "leave 'strategy' out"
            )
        return self

    @model_validator(mode="after")
    def _stride_within_window(self) -> "JobSpec":
        if self.stride is not None and self.stride > self.target_length:
            raise ValueError(
                f"objective.stride is {self.stride}, beyond the target length of {self.target_length} tokens"
            )
        if self.tokens_scored is not None and self.tokens_scored < self.target_length:
            raise ValueError(
                f"objective.tokens is {self.tokens_scored}, less than one window of {self.target_length} tokens"
            )
        return self

    @property
    def stride(self) -> int | None:
        """The stride of the sliding window in tokens; None if only the first window is scored."""
        return self.objective.stride if isinstance(self.objective, PerplexitySpec) else None

    @property
    def tokens_scored(self) -> int | None:
        """The number of tokens of each document that a sliding window scores; None if it scores all."""
        return self.objective.tokens if isinstance(self.objective, PerplexitySpec) else None

    @property
    def racing_error_rate(self) -> float | None:
        """The error rate of racing; None if no candidate is stopped early."""
        racing = self.strategy.kind == "auto" if self.racing is None else self.racing
        if isinstance(racing, bool):
            return RacingSpec().error_rate if racing else None
        return racing.error_rate

    @property
    def sha256(self) -> str:
        """The identity of the search: a hash of everything but names, resources, to whom it reports, and what may be
        changed later: the budget, and the baselines."""
        sources = {"factors": {"__all__": {"source", "original_length"}}}  # the length belongs to base and scale
        left_out: dict[str, Any] = dict.fromkeys(
            ("name", "budget", "resources", "baselines", "trackers", "webhooks"), True
        )
        left_out["warm_start"] = sources
        content = self.model_dump(mode="json", exclude=left_out)
        later = [(content["data"], "least_tokens"), (content["objective"], "tokens")]
        later += [(content["space"], "scale"), (content["space"], "form"), (content, "short_window")]
        for holder, key in [*later, *((known, "compare_as") for known in content["warm_start"]["factors"])]:
            if key in holder and holder[key] is None:  # keeps identities from before these keys existed
                del holder[key]
        return sha256_of(content)


def parse_model(document: Any) -> ModelSpec:
    """Validate a model's part of a specification given as a JSON object.

    Raises:
        SpecError: the model is not valid; the message names every wrong key and the reason.
    """
    try:
        return ModelSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(f"the model is not valid: {explain(error)}") from None


def parse_spec(document: Any, *, stored: bool = False) -> JobSpec:
    """Validate a job specification given as a JSON object.

    Args:
        document: the specification.
        stored: it was validated when it was submitted, so that limits of numbers do not hold.

    Raises:
        SpecError: the specification is not valid; the message names every wrong key and the reason.
    """
    try:
        return JobSpec.model_validate(document, context=STORED if stored else None)
    except ValidationError as error:
        raise SpecError(f"the specification is not valid: {explain(error)}") from None


def read_spec(file: Path) -> JobSpec:
    """Read a job specification; relative paths in it are relative to the current folder.

    Raises:
        SpecError: the file cannot be read, is not JSON, or is not a valid specification.
    """
    return parse_spec(read_json(file, SpecError))
