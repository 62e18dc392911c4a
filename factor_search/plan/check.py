"""What of a plan can be seen to be impossible before any weights are loaded: files, configuration, packages."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from factor_search.errors import DataError, FinetuneError, SpecError
from factor_search.export.huggingface import huggingface_config
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.job import check_possible
from factor_search.measure.passkey import passkey_samples
from factor_search.methods import closed_form
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.model.loading import load_config, load_tokenizer, looks_local
from factor_search.plan.harness import check_installed
from factor_search.plan.spec import PlanSpec
from factor_search.plan.stages import EvaluateStage, ExportStage, FinetuneStage, SearchStage, Stage
from factor_search.plan.work import Outcome, SearchWork, work_of
from factor_search.search.space import SearchSpace
from factor_search.spec import ModelSpec
from factor_search.text.documents import matching_files
from factor_search.text.samples import SampleSet, sample_of
from factor_search.text.tokens import CachedTokenizer


def check_plan(plan: PlanSpec) -> None:
    """Refuse what cannot end well, before hours are spent on its first stages.

    Of a model on the hub nothing is read.

    Raises:
        DataError: a path or glob matches nothing, or passkeys do not fit into a length that is asked for.
        ModelError: a local model is not there, its configuration is broken, or has no rotary position embeddings.
        SpecError: lengths or spaces do not fit a local model, or a package is not installed.
        ExportError: a local model's configuration cannot hold factors.
        FinetuneError: adapters are asked for, and peft is not installed.
    """
    expanded = plan.expanded()
    stages = expanded.stages or []
    first = work_of(expanded, 0, [])
    assert isinstance(first, SearchWork), "every other stage needs a search before it"
    for pattern in plan.training_files or ():
        matching_files(pattern)
    _check_packages(stages)
    if looks_local(plan.model.id) or Path(plan.model.id).is_dir():
        _check_fits(expanded, stages, read_geometry(load_config(plan.model), plan.model.original_length))
    check_possible(first.job)


def check_documents(outcomes: Sequence[Outcome]) -> None:
    """Refuse results on other held-out documents than those of the stages before: files were added or taken away.

    Args:
        outcomes: of all stages so far, in their order.

    Raises:
        DataError: the last is on others.
    """
    held_out = [sources for outcome in outcomes if (sources := _held_out(outcome))]
    if any(sources != held_out[0] for sources in held_out):
        raise DataError(
            "the documents are no longer those of the first stages, which may have searched or trained on what is now "
            "held out: bring back the files as they were, or start over from the first stage"
        )


def _held_out(outcome: Outcome) -> list[str] | None:
    """Sources of the held-out documents; None of a stage that reads none."""
    documents = outcome.report.get("documents")
    if isinstance(documents, dict):
        return list(documents["held_out"])
    return outcome.report.get("held_out_documents")


def _check_packages(stages: list[Stage]) -> None:
    for stage in stages:
        if isinstance(stage, EvaluateStage) and stage.harness:
            check_installed()
        lora = isinstance(stage, FinetuneStage) and stage.settings.method.kind == "lora"
        if lora and importlib.util.find_spec("peft") is None:
            raise FinetuneError(f"{stage.name}: method 'lora' needs the package peft: pip install peft")


def _check_fits(plan: PlanSpec, stages: list[Stage], geometry: Geometry) -> None:
    """All models of a plan have the geometry of its first."""
    original = geometry.original_length
    lengths: dict[str, int] = {}
    for stage in stages:
        if isinstance(stage, SearchStage):
            if stage.target_length <= original:
                raise SpecError(
                    f"lengths must grow: {stage.name} is for {stage.target_length} tokens, not above the model's "
                    f"original length of {original}; with a recipe, give middle_length"
                )
            SearchSpace.build(stage.space, geometry, stage.target_length)
            lengths[str(stage.name)] = stage.target_length
        elif isinstance(stage, EvaluateStage):
            _check_passkeys(stage, plan.model)
        elif isinstance(stage, FinetuneStage | ExportStage):
            length = lengths[str(stage.factors)]
            if isinstance(stage, FinetuneStage):
                stage.settings.sequence_length(original, length)
            model = FactorsModel.of(plan.model.id, plan.model.revision, geometry)
            trial = factors_file(closed_form("ntk", geometry, length), model, length)
            huggingface_config(trial, load_config(plan.model))


def _check_passkeys(stage: EvaluateStage, model: ModelSpec) -> None:
    """Whether a passkey and its question fit into the least length that is asked for."""
    asked = stage.passkey
    if asked is None or asked.lengths is None:
        return
    tokenizer = CachedTokenizer(load_tokenizer(model))
    least = min(asked.lengths)
    blank = sample_of("", np.resize(np.array([*tokenizer.prefix, 0], dtype=np.int64), least + 1))
    try:
        passkey_samples(SampleSet("held_out", (blank,)), tokenizer, lengths=[least], depths=[0], digits=asked.digits)
    except DataError as error:
        raise DataError(f"{stage.name}: passkey.lengths: {error}") from None
