"""Refuses plans that cannot succeed before any weights are loaded: by files, configuration and packages."""

from collections.abc import Sequence
from pathlib import Path

from factor_search.errors import DataError
from factor_search.job import check_possible
from factor_search.model.configuration import read_geometry
from factor_search.model.loading import load_config
from factor_search.plan.kinds import kind_of
from factor_search.plan.kinds.contract import LocalModel, Outcome
from factor_search.plan.kinds.search import SearchStage, SearchWork
from factor_search.plan.spec import PlanSpec
from factor_search.plan.work import work_of
from factor_search.spec import looks_local
from factor_search.text.documents import document_files


def check_plan(plan: PlanSpec) -> tuple[str, ...]:
    """Refuse a plan that cannot succeed, before hours are spent on its first stages.

    A model on the hub is not looked at.

    Returns:
        What was assumed of a local model, one sentence each.

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
        document_files(pattern)
    for stage in stages:
        kind_of(stage).check_packages(stage)
    if looks_local(plan.model.id) or Path(plan.model.id).exists():
        geometry = read_geometry(load_config(plan.model), plan.model.original_length)
        # all models of a plan have the geometry of its first
        lengths = {str(stage.name): stage.target_length for stage in stages if isinstance(stage, SearchStage)}
        for stage in stages:
            kind_of(stage).check_model(stage, LocalModel(spec=plan.model, geometry=geometry, lengths=lengths))
    return check_possible(first.job)


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
            "held out: restore the files as they were, or start over from the first stage"
        )


def _held_out(outcome: Outcome) -> list[str] | None:
    """Sources of the held-out documents; None of a stage that reads none."""
    documents = outcome.report.get("documents")
    if isinstance(documents, dict):
        return list(documents["held_out"])
    return outcome.report.get("held_out_documents")
