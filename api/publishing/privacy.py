"""What may leave this machine: a specification without paths and names of people, and a check of what was written."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from factor_search.errors import OutputError
from factor_search.files.json_documents import read_json, write_json
from factor_search.methods import AS_CONFIGURED, METHODS
from factor_search.model.checkpoint_files import is_local
from factor_search.report.document import FOUND
from factor_search.spec import JobSpec, WarmStartSpec

HIDDEN = "hidden"
JOB = "search"
"""Takes the place of a job's name."""
TEXT = (".json", ".md", ".txt", ".jinja", ".modelfile", "")
"""Ends of the names of files that are looked into; the others are weights, vocabularies and pictures."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def public_model(spec: JobSpec, base_model: str | None) -> str:
    """The name of a model for others: on the hub, or else the last part of its path."""
    if base_model is not None:
        return base_model
    return PurePath(os.path.abspath(spec.model.id)).name if is_local(spec.model.id) else spec.model.id


def public_file(source: str, *, hide: bool) -> str:
    """The name of a document for others, without its folder."""
    return HIDDEN if hide else PurePath(source).name


def public_method(name: str, known: Iterable[str]) -> str:
    """The name of a row of the results; names that a user gave are numbered."""
    if name in {FOUND, AS_CONFIGURED, *METHODS}:
        return name
    others = [one for one in known if one not in {FOUND, AS_CONFIGURED, *METHODS}]
    return f"known-{others.index(name) + 1}"


def public_spec(spec: JobSpec, identity: Mapping[str, str], model: str, *, hide: bool) -> JobSpec:
    """The specification of a search without paths, names of people and ids of a service.

    Args:
        spec: as the user wrote it.
        identity: of the model as it was loaded, which says precision, attention and the commit on the hub.
        model: the public name of the model.
        hide: whether even the last parts of the names of files are left out.
    """
    commit = identity["model"] if not is_local(spec.model.id) and COMMIT.fullmatch(identity["model"]) else None
    loaded = {"dtype": identity["dtype"], "attention": identity["attention"], "device": "auto"}
    described = spec.model.model_copy(update={"id": model, "revision": commit, "trust_remote_code": False} | loaded)
    files = {
        key: None
        if (patterns := getattr(spec.data, key)) is None
        else [public_file(one, hide=hide) for one in patterns]
        for key in ("files", "held_out_files")
    }
    known = [
        one.model_copy(update={"source": f"known-{number}", "compare_as": one.compare_as and f"known-{number}"})
        for number, one in enumerate(spec.warm_start.factors, start=1)
    ]
    return spec.model_copy(
        update={
            "name": JOB,
            "model": described,
            "data": spec.data.model_copy(update=files),
            "warm_start": WarmStartSpec(factors=known, rescale_factors=spec.warm_start.rescale_factors),
        }
    )


def without_origin(file: Path, model: str) -> None:
    """Let a configuration name its model as others know it, instead of the path from which it was loaded."""
    content = read_json(file, OutputError, own=True)

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: (model if inner else inner) if key == "_name_or_path" else renamed(inner)
                for key, inner in value.items()
            }
        return [renamed(inner) for inner in value] if isinstance(value, list) else value

    write_json(file, renamed(content), finite=False)


def check_nothing_private(folder: Path, spec: JobSpec, told: Sequence[str]) -> None:
    """Check that no text file of a folder names a path of the search, whatever wrote it.

    Args:
        folder: of the publication.
        spec: of the search.
        told: names that the user wants to be known, such as that of the model on the hub; a path that is part of one,
            or of the name of a file in the folder, tells nothing more.

    Raises:
        OutputError: one does; names the file, not the path.
    """
    private = [*(spec.data.files or ()), *(spec.data.held_out_files or ()), *spec.warm_start.files]
    private += [spec.model.id] if is_local(spec.model.id) else []
    private += [os.path.abspath(one) for one in private] + [
        str(PurePath(os.path.abspath(one)).parent) for one in private
    ]
    files = sorted(folder.rglob("*"))
    known = [*told, *(file.relative_to(folder).as_posix() for file in files)]
    paths = {one for one in private if os.sep in one.strip(os.sep)}
    searched = {one.encode() for one in paths if not any(one.strip(os.sep) in name for name in known)}
    for file in files:
        if file.is_file() and file.suffix.lower() in TEXT:
            content = file.read_bytes()
            if any(one in content for one in searched):
                raise OutputError(
                    f"{file.relative_to(folder)} would name a path of this machine, so nothing is published: take the "
                    "path out of the file of the model that holds it"
                )
