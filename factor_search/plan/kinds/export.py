"""A stage that writes the model with the factors in its configuration."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from factor_search.errors import ExportError
from factor_search.factors_file import FactorsModel, factors_file, parse_factors
from factor_search.methods import closed_form
from factor_search.plan.kinds.contract import (
    FACTORS,
    MODEL,
    Access,
    Execution,
    FactorsDocument,
    LocalModel,
    OnProgress,
    Outcome,
    PlanContext,
    Stage,
    StageKind,
    Work,
    content_of,
)
from factor_search.plan.kinds.readjust import ReadjustStage, readjustment_for
from factor_search.plan.kinds.search import search_named
from factor_search.spec import ModelSpec

FOLDER, LONG_FILE, SHORT_FILE = "model", "factors.json", "short_factors.json"
"""What an export leaves in its folder."""


class ExportStage(Stage):
    """Write the model with the factors in its configuration."""

    needs_search: ClassVar[str | None] = "nothing to export"

    kind: Literal["export"] = "export"
    model: str | None = Field(None, description=MODEL)
    factors: str | None = Field(None, description=FACTORS)
    profile: Literal["static", "switching"] = Field(
        "static",
        description="static: the same factors for short and long inputs. switching: readjusted ones up to the original "
        "length; a key-value cache that grows beyond it then mixes keys rotated with different factors and is invalid.",
    )
    short: str | None = Field(
        None, description="For switching: the readjustment of these factors; null is the last one."
    )


class ExportWork(Work):
    """A model folder to write."""

    kind: Literal["export"] = "export"
    model: ModelSpec
    factors: FactorsDocument
    short: FactorsDocument | None = Field(description="The short half of a pair; null for the same factors throughout.")

    def _identity(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude={"stage"})
        return content | {"factors": content_of(self.factors), "short": self.short and content_of(self.short)}

    def access(self) -> Access:
        """The model."""
        return Access(models=(self.model,), writes=True)


class ExportKind(StageKind[ExportStage, ExportWork]):
    """See :class:`ExportStage`."""

    stage = ExportStage
    work = ExportWork
    execution = Execution.WORKER

    def complete(self, stage: ExportStage, before: Mapping[str, Stage]) -> ExportStage:
        """A switching export has a readjustment whose attention factor is the long one."""
        if stage.profile == "static":
            if stage.short is not None:
                raise ValueError(
                    f"{stage.name}: short belongs to the profile 'switching'; 'static' has long factors only"
                )
            return stage
        chosen = readjustment_for(stage, str(stage.model), str(stage.factors), before)
        if chosen is None:
            raise ValueError(
                f"{stage.name}: nothing to switch to, since no stage before it readjusts {stage.factors} on "
                f"{stage.model}"
            )
        readjusted = before[chosen]
        assert isinstance(readjusted, ReadjustStage)
        if readjusted.attention_factor != "long":
            raise ValueError(
                f"{stage.name}: {chosen} has an attention factor of its own, but a configuration has one for both: set "
                "its attention_factor to 'long'"
            )
        return stage.model_copy(update={"short": chosen})

    def check(self, stage: ExportStage, before: Mapping[str, Stage]) -> None:
        """A configuration cannot hold initial tokens."""
        check_no_initial_tokens(stage, stage.factors, before)

    def check_model(self, stage: ExportStage, model: LocalModel) -> None:
        """There must be a folder, whose configuration must be able to hold factors."""
        if stage.model == "original" and model.spec.id.lower().endswith(".gguf"):
            raise ExportError(
                f"{stage.name}: {model.spec.id} is a GGUF file, which has no configuration: leave the stage out, and "
                "export the factors as gguf"
            )
        check_configuration(stage.factors, model)

    def make_work(self, stage: ExportStage, context: PlanContext) -> ExportWork:
        """The long factors, and the short ones of a pair."""
        return ExportWork(
            stage=str(stage.name),
            model=context.model_of(stage),
            factors=context.factors_of(stage.factors),
            short=context.factors_of(stage.short) if stage.short else None,
        )

    def perform(self, work: ExportWork, folder: Path, on_progress: OnProgress) -> Outcome:
        """Write the model folder beside its final place, and move it there when it is whole."""
        from factor_search.export.huggingface import export_huggingface
        from factor_search.model.loading import checkpoint_folder, load_config

        file, short = parse_factors(work.factors), parse_factors(work.short) if work.short else None
        config = load_config(work.model)
        final, unfinished = folder / FOLDER, folder / f".{FOLDER}"
        if not final.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            export_huggingface(file, config, lambda: checkpoint_folder(work.model), unfinished, short)
            unfinished.rename(final)
        file.write(folder / LONG_FILE)
        if short is not None:
            short.write(folder / SHORT_FILE)
        files = sorted(item.name for item in final.iterdir())
        return Outcome(
            model=work.model.model_copy(update={"id": str(final.resolve()), "revision": None}),
            report={"profile": "static" if short is None else "switching", "files": files},
        )

    def figures(self, work: ExportWork, outcome: Outcome) -> dict[str, Any]:
        """The profile, the files and their folder."""
        return {**outcome.report, "model": outcome.model.id if outcome.model else None}

    def summary(self, figures: dict[str, Any]) -> str:
        """The profile."""
        return f"a checkpoint that plain transformers loads, {figures['profile']}"


def check_no_initial_tokens(stage: Stage, factors: str | None, before: Mapping[str, Stage], remedy: str = "") -> None:
    """Refuse at once what would only be found after hours of search.

    Raises:
        ValueError: the search may find initial tokens, which no configuration can express.
    """
    search = search_named(factors, before)
    if search.space.initial_tokens != [0]:
        raise ValueError(
            f"{stage.name}: {search.name} may find initial tokens, which no configuration can express: set its "
            f"space.initial_tokens to [0]{remedy}"
        )


def check_configuration(factors: str | None, model: LocalModel) -> None:
    """Refuse a local model whose configuration cannot hold factors, by a trial.

    Raises:
        ExportError: it cannot.
    """
    from factor_search.export.huggingface import huggingface_config
    from factor_search.model.loading import load_config

    length = model.lengths[str(factors)]
    described = FactorsModel.of(model.spec.id, model.spec.revision, model.geometry)
    trial = factors_file(closed_form("ntk", model.geometry, length), described, length)
    huggingface_config(trial, load_config(model.spec))


KIND = ExportKind()
