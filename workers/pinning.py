"""Names on the hub become commits when a job or plan is submitted, so that all of its workers and stages read the same.

The commit of a branch or tag is asked of the hub. If the hub cannot be reached, it is the one in this machine's cache;
and if there is none, the submission is refused, since its workers could not agree on what they read.
"""

import re
from pathlib import Path
from typing import Any, TypeVar

from factor_search.errors import SpecError, one_line
from factor_search.model.checkpoint_files import is_local
from factor_search.plan.kinds.contract import Stage
from factor_search.plan.kinds.evaluate import EvaluateStage
from factor_search.plan.spec import PlanSpec
from factor_search.spec import DataSpec, JobSpec, ModelSpec

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_SECONDS = 5.0
"""How long the hub may take to answer."""

Spec = TypeVar("Spec", JobSpec, PlanSpec)


def pinned(spec: Spec) -> Spec:
    """The specification with the commits of the model and of the data set, if they are on the hub.

    A plan's stages all have the model and the documents of the plan; one may name a model that chooses key tokens.

    Raises:
        SpecError: one is not on the hub, or its commit cannot be known.
    """
    update: dict[str, Any] = {"model": _pinned_model(spec.model), "data": _pinned_data(spec.data)}
    if isinstance(spec, PlanSpec) and spec.stages is not None:
        update["stages"] = [_pinned_stage(stage) for stage in spec.stages]
    return spec.model_copy(update=update)


def commit_of(repository: str, kind: str, revision: str | None, key: str) -> str:
    """The commit of a branch or tag on the hub; None is the main branch.

    Args:
        repository: owner/name.
        kind: ``model`` or ``dataset``.
        revision: branch, tag or commit.
        key: of the specification, for messages.

    Raises:
        SpecError: there is no such repository or revision, or the hub cannot be reached and the cache has none.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=HUB_SECONDS).sha
    except RevisionNotFoundError:
        raise SpecError(f"{key}: {repository} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise SpecError(
            f"{key}: there is no {kind} {repository} on the hub, or it needs a token (HF_TOKEN of the service)"
        ) from None
    except Exception as error:  # whatever the client raises without a network, or offline
        found, reason = _cached(repository, kind, revision or "main"), one_line(error)
    else:
        reason = "the hub gave no commit"
    if found is None or not COMMIT.fullmatch(found):
        raise SpecError(
            f"{key}: the commit of {repository} is not known here ({reason}): give it as revision (40 hexadecimal "
            "digits), or download it first"
        )
    return found


def _pinned_stage(stage: Stage) -> Stage:
    if not isinstance(stage, EvaluateStage) or stage.key_tokens is None:
        return stage
    chosen = stage.key_tokens.model_copy(update={"model": _pinned_model(stage.key_tokens.model)})
    return stage.model_copy(update={"key_tokens": chosen})


def _pinned_model(model: ModelSpec) -> ModelSpec:
    if is_local(model.id):
        return model
    return model.model_copy(update={"revision": commit_of(model.id, "model", model.revision, "model.id")})


def _pinned_data(data: DataSpec) -> DataSpec:
    if data.dataset is None:
        return data
    return data.model_copy(update={"revision": commit_of(data.dataset, "dataset", data.revision, "data.dataset")})


def _cached(repository: str, kind: str, revision: str) -> str | None:
    """The commit that a revision was when it was downloaded last; None if it never was."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type=kind))
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if (folder / "snapshots" / commit).is_dir() else None
