"""A stage that writes the factors in the format of an inference engine."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from factor_search.errors import ExportError
from factor_search.export.contract import Source
from factor_search.export.registry import ENGINES, engine_named, export, expressible
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file, parse_factors
from factor_search.files.atomic import move_folder
from factor_search.files.gguf import is_gguf
from factor_search.files.json_documents import read_json, write_json
from factor_search.methods import closed_form
from factor_search.model.geometry import longrope_attention_factor
from factor_search.plan.kinds.contract import (
    FACTORS,
    MODEL,
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
from factor_search.spec.named import Flag, Text

HUGGINGFACE = "huggingface"
OF_FILES = ("gguf", "ollama", "onnx")
"""Formats whose model is not a folder of Hugging Face."""
FOLDER, LONG_FILE, SHORT_FILE, NOTES_FILE = "model", "factors.json", "short_factors.json", "export.json"
"""What an export leaves in its folder."""


class ExportStage(Stage):
    """Write the factors in the format of an inference engine."""

    needs_search: ClassVar[str | None] = "nothing to export"

    kind: Literal["export"] = "export"
    model: Text | None = Field(None, description=MODEL)
    factors: Text | None = Field(None, description=FACTORS)
    format: Text = Field(
        HUGGINGFACE,
        description="The engine's format, as of the command export: " + ", ".join(ENGINES) + ".",
        json_schema_extra={"enum": list(ENGINES)},
    )
    nearest: Flag = Field(
        False, description="Write the nearest that the format can express, if it cannot express the factors themselves."
    )
    profile: Literal["static", "switching"] = Field(
        "static",
        description="static: the same factors for short and long inputs. switching: readjusted ones up to the original "
        "length; a key-value cache that grows beyond it then mixes keys rotated with different factors and is invalid.",
    )
    short: Text | None = Field(
        None, description="For switching: the readjustment of these factors; null is the last one."
    )

    @field_validator("format")
    @classmethod
    def _known(cls, format: str) -> str:
        try:
            engine_named(format)
        except ExportError as error:
            raise ValueError(str(error)) from None
        return format


class ExportWork(Work):
    """A model folder, or other files, to write."""

    kind: Literal["export"] = "export"
    model: ModelSpec
    format: Text = HUGGINGFACE
    nearest: Flag = False
    factors: FactorsDocument
    short: FactorsDocument | None = Field(description="The short half of a pair; null for the same factors throughout.")

    def _identity(self) -> dict[str, Any]:
        later = {"format": HUGGINGFACE, "nearest": False}  # fields that earlier versions had not
        content = self.model_dump(mode="json", exclude={"stage", "trackers"})
        content = {key: value for key, value in content.items() if key not in later or value != later[key]}
        return content | {"factors": content_of(self.factors), "short": self.short and content_of(self.short)}


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
        """Most formats cannot hold initial tokens."""
        if not stage.nearest and not ENGINES[stage.format].holds_initial_tokens:
            check_no_initial_tokens(stage, stage.factors, before)

    def check_model(self, stage: ExportStage, model: LocalModel) -> None:
        """The format must be able to hold factors for the model, as far as that is known before the search.

        Raises:
            ExportError: it cannot.
        """
        long = trial_factors(stage.factors, model)
        short = long.model_copy(update={"target_length": long.model.original_length, "scale": 1.0})
        trial = Source(long, model.spec, short if stage.profile == "switching" else None)
        made = stage.model not in (None, "original")
        if made and stage.format in OF_FILES:
            raise ExportError(
                f"{stage.name}: {stage.model} is a folder of Hugging Face, which the format {stage.format} does not "
                "take: convert it to the engine's own files, and export with --model"
            )
        if made and is_gguf(model.spec.id):  # the folder has another configuration, which is not written yet
            check_configuration(stage.factors, model)
            return
        try:
            expressible(ENGINES[stage.format], trial, nearest=stage.nearest)
        except ExportError as error:
            raise ExportError(f"{stage.name}: {error}") from None

    def make_work(self, stage: ExportStage, context: PlanContext) -> ExportWork:
        """The long factors, and the short ones of a pair."""
        return ExportWork(
            stage=str(stage.name),
            model=context.model_of(stage),
            format=stage.format,
            nearest=stage.nearest,
            factors=context.factors_of(stage.factors),
            short=context.factors_of(stage.short) if stage.short else None,
        )

    def perform(self, work: ExportWork, folder: Path, on_progress: OnProgress) -> Outcome:
        """Write the model folder beside its final place, and move it there when it is whole."""
        file, short = parse_factors(work.factors), parse_factors(work.short) if work.short else None
        final, unfinished = folder / FOLDER, folder / f".{FOLDER}"
        if not final.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            exported = export(work.format, Source(file, work.model, short), unfinished, nearest=work.nearest)
            notes = [note.replace(str(unfinished), str(final)) for note in exported.notes]
            command = exported.command and exported.command.replace(str(unfinished), str(final))
            write_json(folder / NOTES_FILE, {"command": command, "notes": notes})
            move_folder(unfinished, final)
        file.write(folder / LONG_FILE)
        if short is not None:
            short.write(folder / SHORT_FILE)
        files = sorted(item.name for item in final.iterdir())
        models = [final / name for name in files if is_gguf(name)] or [final]
        return Outcome(
            model=work.model.model_copy(update={"id": str(models[0].resolve()), "revision": None}),
            report={
                "profile": "static" if short is None else "switching",
                "format": work.format,
                "files": files,
                **read_json(folder / NOTES_FILE, ExportError, own=True),
            },
        )

    def figures(self, work: ExportWork, outcome: Outcome) -> dict[str, Any]:
        """The profile, the files and their folder."""
        return {**outcome.report, "model": outcome.model.id if outcome.model else None}

    def summary(self, figures: dict[str, Any]) -> str:
        """The format and the profile."""
        if figures.get("format", HUGGINGFACE) == HUGGINGFACE:
            return f"a checkpoint that plain transformers loads, {figures['profile']}"
        return f"for {ENGINES[figures['format']].title}, {figures['profile']}"


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
    from factor_search.export.configuration import huggingface_config
    from factor_search.model.loading import load_config

    huggingface_config(trial_factors(factors, model), load_config(model.spec))


def trial_factors(factors: str | None, model: LocalModel) -> FactorsFile:
    """Factors of the model for the length of a search, with the attention factor that every engine can express."""
    length = model.lengths[str(factors)]
    described = FactorsModel.of(model.spec.id, model.spec.revision, model.geometry)
    lambdas = closed_form("ntk", model.geometry, length).rescale_factors
    formula = longrope_attention_factor(length / model.geometry.original_length, model.geometry.original_length)
    return factors_file(Factors.of(lambdas, 0, formula), described, length)


KIND = ExportKind()
