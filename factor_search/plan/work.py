"""What one stage of a plan has to do once those before have ended, with everything in it, and what comes out of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from factor_search.errors import SpecError
from factor_search.factors_file import FactorsFile, parse_factors
from factor_search.files.canonical_json import sha256_of
from factor_search.files.json_documents import explain
from factor_search.finetune.spec import FinetuneSpec
from factor_search.plan.readjusting import readjusting_job
from factor_search.plan.spec import PlanSpec
from factor_search.plan.stages import (
    ORIGINAL,
    AwaitStage,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    PasskeySpec,
    ReadjustStage,
    SearchStage,
    Stage,
)
from factor_search.search.warm_start import known_from
from factor_search.spec import DataSpec, Int, JobSpec, ModelSpec, PositiveInt, Strict, WarmStartSpec

FactorsDocument = dict[str, Any]
"""The JSON of a factors file."""


class Outcome(Strict):
    """What a stage has made."""

    model: ModelSpec | None = Field(None, description="The checkpoint that it made or was given.")
    factors: FactorsDocument | None = Field(None, description="The factors file of a search.")
    report: dict[str, Any] = Field(default={}, description="What was measured, by kind of stage.")


class _Work(Strict, ABC):
    stage: str = Field(description="The stage's name; without meaning for the result.")

    @property
    def sha256(self) -> str:
        """Identity of all that determines the result; names, budgets and how often to save are left out."""
        return sha256_of(self._identity())

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What is hashed."""


class SearchWork(_Work):
    """A search, run as a job is; a readjusting is one at the original length."""

    kind: Literal["search", "readjust"] = "search"
    job: JobSpec
    long: FactorsDocument | None = Field(None, description="Of a readjusting: the factors that it makes a pair with.")

    def _identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "job": self.job.sha256}


class FinetuneWork(_Work):
    """A fine-tuning with factors in force, for the length that they are for."""

    kind: Literal["finetune"] = "finetune"
    model: ModelSpec
    data: DataSpec
    training_files: list[str] | None
    factors: FactorsDocument
    settings: FinetuneSpec
    seed: Int

    def _identity(self) -> dict[str, Any]:
        settings = self.settings.sha256
        content = self.model_dump(mode="json", include={"kind", "model", "data", "training_files", "seed"})
        return content | {"factors": _content(self.factors), "settings": settings}


class AwaitWork(_Work):
    """A checkpoint to wait for, tuned from a model with factors in force."""

    kind: Literal["await_checkpoint"] = "await_checkpoint"
    model: ModelSpec
    factors: FactorsDocument

    def _identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"kind", "model"}) | {"factors": _content(self.factors)}


class EvaluateWork(_Work):
    """Measurements on the held-out documents."""

    kind: Literal["evaluate"] = "evaluate"
    original: ModelSpec = Field(description="The plan's model, whose short texts are compared with.")
    model: ModelSpec
    data: DataSpec
    factors: FactorsDocument
    short: FactorsDocument | None = Field(description="The readjusted factors, if there are any.")
    lengths: list[PositiveInt] | None
    passkey: PasskeySpec | None
    harness: list[str]
    seed: Int

    @property
    def job(self) -> JobSpec:
        """The model, documents and length as those of a job, for whoever prepares evaluators by jobs."""
        target_length = parse_factors(self.factors).target_length
        return JobSpec(name=self.stage, model=self.model, data=self.data, target_length=target_length, seed=self.seed)

    def _identity(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude={"stage"})
        return content | {"factors": _content(self.factors), "short": self.short and _content(self.short)}


class ExportWork(_Work):
    """A model folder to write."""

    kind: Literal["export"] = "export"
    model: ModelSpec
    factors: FactorsDocument
    short: FactorsDocument | None = Field(description="The short half of a pair; null for the same factors throughout.")

    def _identity(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude={"stage"})
        return content | {"factors": _content(self.factors), "short": self.short and _content(self.short)}


Work = SearchWork | FinetuneWork | AwaitWork | EvaluateWork | ExportWork
_ADAPTER: TypeAdapter[Work] = TypeAdapter(Annotated[Work, Field(discriminator="kind")])


def parse_work(document: Any) -> Work:
    """The work that was written as ``work.model_dump(mode="json")``.

    Raises:
        SpecError: it is none, naming what is wrong.
    """
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise SpecError(f"the work of a stage is not valid: {explain(error)}") from None


def parse_outcome(document: Any) -> Outcome:
    """The outcome that was written as ``outcome.model_dump(mode="json")``.

    Raises:
        SpecError: it is none, naming what is wrong.
    """
    try:
        return Outcome.model_validate(document)
    except ValidationError as error:
        raise SpecError(f"the outcome of a stage is not valid: {explain(error)}") from None


def work_of(plan: PlanSpec, number: int, outcomes: Sequence[Outcome]) -> Work:
    """What a stage has to do; reads no file.

    Args:
        plan: as it is, or expanded.
        number: of the stage, from 0.
        outcomes: of all stages before it, in their order.

    Raises:
        FactorsError: an outcome's factors are not valid.
    """
    stages = plan.expanded().stages
    assert stages is not None
    assert len(outcomes) >= number, "the stages before have ended"
    return _Known(plan, dict(zip((str(stage.name) for stage in stages), outcomes, strict=False))).work(stages[number])


def last_factors(
    plan: PlanSpec, works: Sequence[Work], outcomes: Sequence[Outcome]
) -> tuple[FactorsDocument | None, FactorsDocument | None]:
    """Long and short factors for the last model so far; searches on an earlier one are there to compare with.

    Args:
        plan: as it is, or expanded.
        works: of the stages that have begun, in their order.
        outcomes: of those that have ended.
    """
    model, long, short = plan.model, None, None
    for work, outcome in zip(works, outcomes, strict=False):
        if isinstance(work, FinetuneWork | AwaitWork) and outcome.model is not None:
            model = outcome.model
        elif isinstance(work, SearchWork) and work.job.model == model:
            long, short = (work.long, outcome.factors) if work.long else (outcome.factors, None)
    return long, short


class _Known:
    """A plan and what its stages have made so far."""

    def __init__(self, plan: PlanSpec, outcomes: Mapping[str, Outcome]) -> None:
        self._plan, self._outcomes = plan, outcomes
        self._data = plan.data.model_copy(update={"least_tokens": plan.data.least_tokens or plan.longest})

    def work(self, stage: Stage) -> Work:
        name, model, data, seed = str(stage.name), self._model(stage.model), self._data, self._plan.seed
        if isinstance(stage, SearchStage):
            return SearchWork(stage=name, job=self._search(stage))
        factors, short = self._factors(stage.factors), getattr(stage, "short", None)
        if isinstance(stage, ReadjustStage):
            long = parse_factors(factors)
            job = self._job(stage, target_length=long.model.original_length)
            job = readjusting_job(job, long, str(stage.factors), stage.attention_factor)
            return SearchWork(stage=name, kind="readjust", job=job, long=factors)
        if isinstance(stage, FinetuneStage):
            return FinetuneWork(
                stage=name,
                model=model,
                data=data,
                training_files=self._plan.training_files,
                factors=factors,
                settings=stage.settings,
                seed=seed,
            )
        if isinstance(stage, AwaitStage):
            return AwaitWork(stage=name, model=model, factors=factors)
        pair = self._factors(short) if short else None
        if isinstance(stage, ExportStage):
            return ExportWork(stage=name, model=model, factors=factors, short=pair)
        return self._evaluation(stage, factors, pair)

    def _search(self, stage: SearchStage) -> JobSpec:
        warm_start = WarmStartSpec()
        if stage.start_from is not None:
            start = self._factors(stage.start_from)
            warm_start = WarmStartSpec(factors=[known_from(start, stage.start_from)])
        job = self._job(stage, target_length=stage.target_length)
        return job.model_copy(update={"objective": stage.objective, "space": stage.space, "warm_start": warm_start})

    def _job(self, stage: SearchStage | ReadjustStage, *, target_length: int) -> JobSpec:
        return JobSpec(
            name=f"{self._plan.name}/{stage.name}",
            model=self._model(stage.model),
            data=self._data,
            target_length=target_length,
            strategy=stage.strategy,
            budget=stage.budget,
            racing=stage.racing,
            seed=self._plan.seed,
        )

    def _evaluation(
        self, stage: EvaluateStage, factors: FactorsDocument, short: FactorsDocument | None
    ) -> EvaluateWork:
        return EvaluateWork(
            stage=str(stage.name),
            original=self._plan.model,
            model=self._model(stage.model),
            data=self._data,
            factors=factors,
            short=short,
            lengths=stage.lengths,
            passkey=stage.passkey,
            harness=stage.harness,
            seed=self._plan.seed,
        )

    def _model(self, name: str | None) -> ModelSpec:
        made = None if name in (None, ORIGINAL) else self._outcomes[str(name)].model
        return self._plan.model if made is None else made

    def _factors(self, name: str | None) -> FactorsDocument:
        found = self._outcomes[str(name)].factors
        assert found is not None, "a search that has ended has factors"
        return found


def _content(document: FactorsDocument) -> dict[str, Any]:
    """What of a factors file acts: not what was measured of it, nor where it comes from."""
    file: FactorsFile = parse_factors(document)
    model = file.model.model_dump(include={"rope_theta", "rotary_dim", "original_length"})
    return {**file.factors.as_json(), "target_length": file.target_length, "model": model}
