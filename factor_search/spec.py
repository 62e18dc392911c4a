"""What a user asks for: one shape for a file, the command line and the REST interface; unknown keys are errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from factor_search.errors import SpecError
from factor_search.files.canonical_json import sha256_of
from factor_search.files.json_documents import explain, read_json

Int = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
PositiveInt = Annotated[int, Field(strict=True, gt=0, lt=2**53)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
INITIAL_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
"""The choices of the LongRoPE paper (2402.13753, table 4)."""


class Strict(BaseModel):
    """Base of all specifications: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ModelSpec(Strict):
    """Which model, and how to run it."""

    id: str = Field(min_length=1, description="A local folder with a Hugging Face checkpoint, or a hub id.")
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights and the computation; auto is what the checkpoint says."
    )
    attention: str = Field("auto", description="Attention implementation of transformers: auto, sdpa, eager, ...")
    device: str = Field("auto", description="A torch device; auto is a GPU where there is one.")
    trust_remote_code: bool = Field(
        False, strict=True, description="Run Python code that comes with the checkpoint; a service must allow it."
    )
    original_length: PositiveInt | None = Field(
        None, ge=8, description="Tokens the model was trained for, where its configuration does not say so truly."
    )


class DataSpec(Strict):
    """Which documents, and how many of them play which part."""

    files: list[str] | None = Field(None, description="Text, JSON-lines or parquet files, saved data sets, or globs.")
    dataset: str | None = Field(None, description="A data set on the hub, instead of files.")
    name: str | None = Field(None, description="Configuration name of the hub data set.")
    split: str = Field("validation", description="Split of the hub or saved data set.")
    column: str = Field("text", description="Column or JSON key that holds a document's text.")
    search_documents: PositiveInt = Field(8, description="Documents that candidates are compared on.")
    validation_documents: PositiveInt = Field(4, description="Documents that choose among the best few candidates.")
    held_out_documents: PositiveInt = Field(8, description="Documents that only the final figures are measured on.")
    held_out_files: list[str] | None = Field(None, description="Take the held-out documents from these files instead.")
    cut_long_documents: bool = Field(
        False,
        strict=True,
        description="Cut documents into consecutive pieces of the target length and count each as a document. Pieces "
        "of one document never play different parts.",
    )
    least_tokens: PositiveInt | None = Field(
        None,
        description="Tokens a document (or piece) needs, though only the first target_length are read; null is the "
        "target length. Jobs of different lengths that share it share their documents and who plays which part.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "DataSpec":
        if bool(self.files) == bool(self.dataset):
            raise ValueError("give either 'files' or 'dataset'")
        return self


class SpaceSpec(Strict):
    """Which candidates are possible."""

    initial_tokens: list[Int] = Field(
        default=list(INITIAL_TOKENS), min_length=1, description="Choices for the number of initial tokens."
    )
    attention_factor: Literal["formula", "search"] | PositiveFloat = Field(
        "formula", description="LongRoPE's formula, part of the search, or a fixed number."
    )
    monotone: bool = Field(True, strict=True, description="Whether lambda_i <= lambda_{i+1} is required.")
    upper_bound: float | None = Field(
        None,
        strict=True,
        ge=1.0,
        le=1000.0,
        description="Largest lambda as a multiple of the scale; null is the paper's 1.25, or 8 for auto and cma.",
    )
    step: float = Field(0.01, strict=True, ge=1e-4, le=1, description="Grid of lambda.")
    scale: PositiveFloat | None = Field(
        None,
        gt=1,
        description="What bounds, curves and formulas are relative to; null is target_length / original length. "
        "Needed where the target is not longer than the original: factors for a long window are readjusted there.",
    )
    critical_dimension: Literal["search"] | Annotated[int, Field(strict=True, ge=2, multiple_of=2)] | None = Field(
        None,
        description="d_rcd of LongRoPE2: an even dimension, whose pair is i = d_rcd / 2. Pairs before it follow NTK, "
        "lambda_i = lambda_rcd^(2i / d_rcd); only those from it on are free. Search tries every pair from half the "
        "theoretical critical one to that one; null leaves all pairs free.",
    )


class EvolutionSpec(Strict):
    """The LongRoPE paper's evolutionary search (2402.13753, algorithm 1)."""

    kind: Literal["evolution"] = "evolution"
    population: PositiveInt = Field(64, description="P: candidates of the first generation.")
    parents: PositiveInt = Field(32, description="k: best candidates that breed.")
    mutants: PositiveInt = Field(16, description="N1: mutants in a generation.")
    crossovers: Int = Field(16, description="N2: crossovers in a generation.")
    mutation_rate: float = Field(0.3, strict=True, gt=0, le=1, description="p: chance of each gene to be redrawn.")
    generations: PositiveInt = Field(40, description="T: generations after the first.")


class AutoSpec(Strict):
    """Few numbers and few documents first, then more of both; does not depend on the budget."""

    kind: Literal["auto"] = "auto"


class _Curve(Strict):
    knots: PositiveInt = Field(8, ge=2, description="Points of the curve log lambda over the rotary pairs.")


class CmaSpec(_Curve):
    """CMA-ES over a non-decreasing curve of log lambda, starting at the best closed form."""

    kind: Literal["cma"] = "cma"
    population: PositiveInt = Field(8, ge=4, description="Candidates of a generation.")
    sigma: PositiveFloat = Field(0.25, description="First step size, in log lambda.")


class TpeSpec(_Curve):
    """Optuna's tree-structured Parzen estimator over a non-decreasing curve of log lambda."""

    kind: Literal["tpe"] = "tpe"
    population: PositiveInt = Field(8, description="Candidates of a generation.")


class Nsga2Spec(_Curve):
    """Optuna's NSGA-II over a non-decreasing curve of log lambda, for two objectives: the loss at the target length and
    the loss within the original length."""

    kind: Literal["nsga2"] = "nsga2"
    population: PositiveInt = Field(24, ge=4, description="Candidates of a generation.")


class RandomSpec(_Curve):
    """Curves of log lambda drawn at random from the whole space: what any strategy must beat."""

    kind: Literal["random"] = "random"
    population: PositiveInt = Field(16, description="Candidates of a generation.")


StrategySpec = Annotated[
    AutoSpec | EvolutionSpec | CmaSpec | TpeSpec | Nsga2Spec | RandomSpec, Field(discriminator="kind")
]


class RacingSpec(Strict):
    """Whether candidates that fall behind are stopped before their last search document."""

    error_rate: float = Field(
        0.01,
        strict=True,
        gt=0,
        lt=0.5,
        description="Chance that a candidate is stopped although it would have beaten the best one so far.",
    )


class KnownFactors(Strict):
    """Factors to start from, with what tells whether they fit the model and for which scale they are."""

    source: str = Field(max_length=4096, description="Where they come from, for people.")
    rescale_factors: list[PositiveFloat] = Field(min_length=1, description="lambda_i of each rotary pair.")
    initial_tokens: Int = Field(0, description="Leading positions that keep the model's own RoPE.")
    attention_factor: PositiveFloat | None = Field(None, description="Null is LongRoPE's formula.")
    scale: PositiveFloat | None = Field(
        None, description="Target over original length that they are for; null is that of this job."
    )
    rotary_dim: PositiveInt | None = Field(None, description="Of the model they are for, where known.")
    rope_theta: PositiveFloat | None = Field(None, description="Of the model they are for, where known.")
    compare_as: str | None = Field(
        None, min_length=1, max_length=60, description="Name under which they are measured beside the closed forms."
    )


MOST_WARM_STARTS = 15
"""With the closed forms they fit into the first generation of ``auto``."""


class WarmStartSpec(Strict):
    """Known factors to start from, beside the closed forms; rescaled where they are for another scale."""

    files: list[str] = Field(
        default=[],
        description="factors.json files, JSON lists of rescale factors, or Hugging Face configurations with a "
        "longrope long_factor. Read once: their content is kept in `factors`.",
    )
    jobs: list[str] = Field(
        default=[],
        description="Ids of finished jobs of the same service, on a model with the same RoPE. Their factors are kept "
        "in `factors` when this job is submitted.",
    )
    rescale_factors: list[list[PositiveFloat]] = Field(
        default=[], description="Vectors given here, one factor a rotary pair, for the target length of this job."
    )
    factors: list[KnownFactors] = Field(
        default=[], description="What `files` and `jobs` had when the job was submitted; may also be given."
    )

    @model_validator(mode="after")
    def _few(self) -> "WarmStartSpec":
        count = len(self.files) + len(self.jobs) + len(self.rescale_factors) + len(self.factors)
        if count > MOST_WARM_STARTS:
            raise ValueError(f"{count} warm starts are too many: choose the best {MOST_WARM_STARTS}")
        return self


class PerplexitySpec(Strict):
    """Perplexity of all tokens of the documents."""

    kind: Literal["perplexity"] = "perplexity"
    stride: PositiveInt | None = Field(
        None,
        description="Score whole documents with a window of the target length moved by this many tokens; null scores "
        "the first window only.",
    )
    tokens: PositiveInt | None = Field(
        None, description="With a stride: score the first so many tokens of each document; null scores all."
    )

    @model_validator(mode="after")
    def _tokens_with_stride(self) -> "PerplexitySpec":
        if self.tokens is not None and self.stride is None:
            raise ValueError("'tokens' goes with a 'stride': without one the first window is scored")
        return self


class NeedleSpec(Strict):
    """Perplexity of answers: each document hides a number, and ends with a question for it (LongRoPE2, 2502.20082)."""

    kind: Literal["needle"] = "needle"
    digits: PositiveInt = Field(7, ge=2, le=15, description="Of the numbers.")
    repeats: PositiveInt = Field(
        1,
        le=64,
        description="Samples made of each document, with other numbers at other depths. Each counts as a document, "
        "also in standard errors.",
    )


ObjectiveSpec = Annotated[PerplexitySpec | NeedleSpec, Field(discriminator="kind")]
MEASURES = {"perplexity": "perplexity", "needle": "perplexity of answer tokens"}
"""What the figures of a search are, by objective."""


class BudgetSpec(Strict):
    """When the search ends; whichever comes first."""

    candidates: PositiveInt | None = Field(200, description="Distinct candidates, the closed-form seeds included.")
    tokens: PositiveInt | None = Field(
        None, description="Tokens scored during the search: of answers only, if these are."
    )
    seconds: PositiveFloat | None = Field(None, description="Seconds of evaluation, stored results included.")
    no_improvement: PositiveInt | None = Field(
        None,
        description="End after a generation when the last so many distinct candidates brought no improvement beyond "
        "one standard error of the paired difference over the search documents.",
    )

    @model_validator(mode="after")
    def _bounded(self) -> "BudgetSpec":
        if all(limit is None for limit in (self.candidates, self.tokens, self.seconds, self.no_improvement)):
            raise ValueError("give at least one of 'candidates', 'tokens', 'seconds' and 'no_improvement'")
        return self


class ResourcesSpec(Strict):
    """What a service must have before the job starts; without meaning for a search in one process."""

    workers: PositiveInt = Field(1, description="Least number of workers.")
    gpus: float = Field(0.0, strict=True, ge=0, le=1, description="GPUs, or the share of one, that each worker needs.")


def _word(key: str) -> Callable[[Any], Any]:
    """Takes a single word for an object with one key."""
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
"""Where one word, list or number is enough, it may be given instead of the object."""


class JobSpec(Strict):
    """One search: a model, documents, a target length."""

    name: str = Field("search", min_length=1, max_length=200, description="For people; not interpreted.")
    model: AnyModel
    data: AnyData
    target_length: PositiveInt = Field(description="Tokens of context wanted.")
    objective: AnyObjective = PerplexitySpec()
    space: SpaceSpec = SpaceSpec()
    strategy: AnyStrategy = AutoSpec()
    budget: AnyBudget = BudgetSpec()
    racing: RacingSpec | bool | None = Field(
        None, description="Stop candidates that fall behind; true is an error rate of 0.01, null lets auto race only."
    )
    warm_start: WarmStartSpec = WarmStartSpec()
    resources: ResourcesSpec = ResourcesSpec()
    seed: Int = Field(0, description="Of the search and of the choice of documents.")

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
        """Of the sliding window in tokens; None if the first window alone is scored."""
        return self.objective.stride if isinstance(self.objective, PerplexitySpec) else None

    @property
    def tokens_scored(self) -> int | None:
        """With a sliding window: tokens of each document that it goes over; None if it goes over all."""
        return self.objective.tokens if isinstance(self.objective, PerplexitySpec) else None

    @property
    def racing_error_rate(self) -> float | None:
        """The error rate of racing; None if no candidate is stopped for its losses."""
        racing = self.strategy.kind == "auto" if self.racing is None else self.racing
        if isinstance(racing, bool):
            return RacingSpec().error_rate if racing else None
        return racing.error_rate

    @property
    def sha256(self) -> str:
        """Identity of what is searched: everything but names, the budget, which a later run may raise, and where."""
        sources = {"factors": {"__all__": {"source"}}}
        left_out: dict[str, Any] = {"name": True, "budget": True, "resources": True, "warm_start": sources}
        content = self.model_dump(mode="json", exclude=left_out)
        later = [(content["data"], "least_tokens"), (content["space"], "scale"), (content["objective"], "tokens")]
        for holder, key in [*later, *((known, "compare_as") for known in content["warm_start"]["factors"])]:
            if key in holder and holder[key] is None:  # the identity from before there were such keys
                del holder[key]
        return sha256_of(content)


def parse_spec(document: Any) -> JobSpec:
    """Validate a job specification given as a JSON object.

    Raises:
        SpecError: naming every offending key and why.
    """
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(f"the specification is not valid: {explain(error)}") from None


def read_spec(file: Path) -> JobSpec:
    """Read a job specification; relative paths in it are taken from the current folder.

    Raises:
        SpecError: the file cannot be read, is not JSON, or is not a valid specification.
    """
    return parse_spec(read_json(file, SpecError))
