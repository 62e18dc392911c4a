"""Reads factors from other formats: configurations, published tables, lists of numbers, model folders, GGUF files."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from factor_search.errors import FactorsError, ModelLoadError, one_line
from factor_search.export.foreign_files import ACCEPTED, document_of, number, tokens, vector
from factor_search.factors_file import SCHEMA, FactorsFile, FactorsModel, parse_factors
from factor_search.files.gguf import is_gguf
from factor_search.model.geometry import longrope_attention_factor
from factor_search.spec import ModelSpec, looks_local

DEEPEST = 4
"""Largest number of dictionaries around ``long_factor``."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Factors with what their source says about them; None where it says nothing."""

    rescale_factors: Sequence[float]
    initial_tokens: int = 0
    attention_factor: float | None = None
    """None is LongRoPE's formula."""
    target_length: int | None = None
    original_length: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    """The known fields of :class:`FactorsModel`."""


def read_foreign(
    source: str | Path | Mapping[str, Any] | Sequence[float],
    *,
    model: ModelSpec | None = None,
    target_length: int | None = None,
    origin: ModelSpec | None = None,
) -> FactorsFile:
    """Read factors from another format.

    Args:
        source: a model folder, hub id or GGUF file whose RoPE scaling is read; a file with a configuration, a published
            table or a list of numbers; or the content of such a file.
        model: the model to which the factors belong; None is the one that the source describes.
        target_length: tokens; None is what the source says. For longrope, one up to the original length chooses the
            short list. For dynamic RoPE it is needed, because the factors depend on it.
        origin: original length, if the source is wrong about it; and of a source that is a model, its revision and the
            permission for remote code. Its id is ignored.

    Raises:
        FactorsError: the source has no factors, they do not fit the model, or something is missing; says what.
        ModelError: a model cannot be read.
    """
    name = str(source) if isinstance(source, str | Path) else "the factors"
    origin = origin or ModelSpec(id="-")
    if isinstance(source, str | Path) and _is_model(source):
        found = _of_model(origin.model_copy(update={"id": name}), name, target_length)
    else:
        found = _of_document(document_of(source), name, target_length, origin, known_model=model is not None)
    if origin.original_length is not None:
        told = {"original_length": origin.original_length}
        found = replace(found, original_length=origin.original_length, model=found.model | told)
    return _file(found, name, model, target_length)


def _is_model(source: str | Path) -> bool:
    """Return whether a source is a model folder, a GGUF file or a hub id, instead of a file with factors.

    Raises:
        FactorsError: it is none of them.
    """
    path, name = Path(source), str(source)
    try:
        if path.is_dir() or is_gguf(name):
            return True
        if path.is_file():
            return False
    except (OSError, ValueError) as error:  # the name is too long, or contains NUL
        raise FactorsError(f"cannot read {name[:100]}: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(source, Path) or looks_local(name) or path.suffix in (".json", ".csv", ".npy", ".txt"):
        raise FactorsError(f"there is no file {name}: factors are read from {ACCEPTED}")
    return True


def _of_document(content: Any, name: str, target_length: int | None, origin: ModelSpec, known_model: bool) -> _Found:
    """Read the factors of a document, whose keys say what it is."""
    if not isinstance(content, Mapping):
        content = content.tolist() if hasattr(content, "tolist") else content  # an array or a tensor
        return _Found(rescale_factors=vector(content, name))
    document = dict(content)
    if "schema" in document:
        return _of_factors_file(document, name)
    if "rescale_factors" in document:
        return _of_table(document, name)
    if "model_type" not in document:
        return _of_part_of_configuration(document, name, target_length)
    try:
        return _of_whole_configuration(document, name, target_length, origin)
    except ModelLoadError:
        if not known_model or not list(_holders(document, DEEPEST)):
            raise
        return _of_part_of_configuration(document, name, target_length)  # transformers does not know the model


def _of_factors_file(document: dict[str, Any], name: str) -> _Found:
    with _named(name):
        file = parse_factors(document)
    return _Found(
        rescale_factors=file.rescale_factors,
        initial_tokens=file.initial_tokens,
        attention_factor=file.attention_factor,
        target_length=file.target_length,
        original_length=file.model.original_length,
        model=file.model.model_dump(),
    )


def _of_table(document: dict[str, Any], name: str) -> _Found:
    """Read a published table: ``rescale_factors`` with as much of its model, target length and so on as it has."""
    theirs = document.get("model")
    theirs = theirs if isinstance(theirs, dict) else {}
    original = tokens(theirs.get("original_length", document.get("original_length")), "original_length", name)
    known = {
        "id": theirs.get("id", theirs.get("name", document.get("name"))),
        "rope_theta": number(theirs.get("rope_theta"), "rope_theta", name),
        "rotary_dim": theirs.get("rotary_dim", theirs.get("head_dim")),
        "original_length": original,
    }
    return _Found(
        rescale_factors=vector(document["rescale_factors"], name),
        initial_tokens=document.get("initial_tokens", 0),
        attention_factor=number(document.get("attention_factor"), "attention_factor", name),
        target_length=tokens(document.get("target_length"), "target_length", name),
        original_length=original,
        model={key: value for key, value in known.items() if value is not None},
    )


def _of_part_of_configuration(document: dict[str, Any], name: str, target_length: int | None) -> _Found:
    """Read the lists of a longrope configuration, whether it is whole or not."""
    holders = list(_holders(document, DEEPEST))
    if not holders:
        raise FactorsError(f"{name} has neither rescale_factors nor long_factor: factors are read from {ACCEPTED}")
    scaling, found = holders[0], {key: value for holder in reversed(holders) for key, value in holder.items()}
    original = tokens(found.get("original_max_position_embeddings"), "original_max_position_embeddings", name)
    longest = number(found.get("max_position_embeddings"), "max_position_embeddings", name)
    factor = number(scaling.get("factor"), "factor", name)
    if longest is None and factor is not None and original is not None:
        longest = factor * original
    attention = scaling.get("attention_factor", scaling.get("long_mscale"))
    if attention is None and factor is not None and original is not None:
        attention = longrope_attention_factor(factor, original)
    short = original is not None and target_length is not None and target_length <= original
    rope_theta = number(found.get("rope_theta"), "rope_theta", name)
    return _Found(
        rescale_factors=vector(scaling.get("short_factor") if short else scaling["long_factor"], name),
        attention_factor=number(attention, "attention_factor", name),
        target_length=None if longest is None else round(longest),
        original_length=original,
        model={} if rope_theta is None else {"rope_theta": rope_theta},
    )


def _of_whole_configuration(
    document: dict[str, Any], name: str, target_length: int | None, origin: ModelSpec
) -> _Found:
    """Read a configuration as transformers does.

    Raises:
        ModelLoadError: transformers does not know the model type, or the configuration is broken.
    """
    path = Path(name)
    if path.name == "config.json":
        return _of_model(origin.model_copy(update={"id": str(path.parent)}), name, target_length)
    with tempfile.TemporaryDirectory() as folder:
        try:
            (Path(folder) / "config.json").write_text(json.dumps(document), encoding="utf-8")
        except (TypeError, ValueError) as error:
            raise FactorsError(f"{name} is not a JSON document: {error}") from None
        try:
            found = _of_model(origin.model_copy(update={"id": folder}), name, target_length)
        except ModelLoadError as error:
            raise ModelLoadError(str(error).replace(folder, name)) from None
    found.model["id"] = str(document.get("_name_or_path") or name)
    return found


def _of_model(spec: ModelSpec, name: str, target_length: int | None) -> _Found:
    """Read the RoPE scaling of a model's configuration."""
    from factor_search.model.as_configured import as_configured, default_target_length
    from factor_search.model.configuration import read_geometry
    from factor_search.model.loading import load_config

    config = load_config(spec)
    try:
        geometry = read_geometry(config, spec.original_length)
        target = target_length or default_target_length(geometry)
        model = FactorsModel.of(spec.id, spec.revision, geometry).model_dump()
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FactorsError(f"{name}: the configuration is broken: {one_line(error)}") from None
    if "dynamic" in geometry.base_rope_type and target_length is None:
        raise FactorsError(
            f"{name} has dynamic RoPE, whose factors depend on the length of the input: give the target length "
            "(--target-length) for which they are wanted"
        )
    with _named(name):
        factors = as_configured(geometry, target)
    return _Found(
        rescale_factors=factors.rescale_factors,
        attention_factor=factors.attention_factor,
        target_length=target,
        original_length=geometry.original_length,
        model=model,
    )


def _file(found: _Found, name: str, model: ModelSpec | None, target_length: int | None) -> FactorsFile:
    """Combine factors with their model.

    Raises:
        FactorsError: they do not fit together, or something is missing.
    """
    target = target_length or found.target_length
    if target is None:
        raise FactorsError(f"{name} does not say for how many tokens the factors are: give --target-length")
    if model is not None:
        entry = _entry(found, name, model)
    else:
        missing = [key for key in ("id", "rope_theta", "rotary_dim", "original_length") if key not in found.model]
        if missing:
            raise FactorsError(
                f"{name} does not say to which model the factors belong ({', '.join(missing)} missing): give --model"
            )
        entry = {"architecture": "unknown", "base_rope_type": "unknown"} | found.model
    attention = found.attention_factor
    if attention is None:
        original = found.original_length or int(entry["original_length"])
        attention = longrope_attention_factor((found.target_length or target) / original, original)
    with _named(name):
        return parse_factors(
            {
                "schema": SCHEMA,
                "model": entry,
                "target_length": target,
                "scale": target / float(entry["original_length"] or 1),
                "rescale_factors": list(found.rescale_factors),
                "initial_tokens": found.initial_tokens,
                "attention_factor": attention,
            }
        )


def _entry(found: _Found, name: str, model: ModelSpec) -> dict[str, Any]:
    """Return the ``model`` of a factors file, for a model that need not be the one that the source names."""
    from factor_search.model.configuration import read_geometry
    from factor_search.model.loading import load_config

    geometry = read_geometry(load_config(model), model.original_length or found.original_length)
    if len(found.rescale_factors) != geometry.pairs:
        raise FactorsError(
            f"{name}: {len(found.rescale_factors)} rescale factors, but {geometry.architecture} has {geometry.pairs} "
            "rotary pairs: they belong to another model"
        )
    theirs = found.model.get("rope_theta")
    if theirs is not None and theirs != geometry.rope_theta:
        raise FactorsError(
            f"{name}: the factors are for rope_theta {theirs:g}, but {geometry.architecture} has "
            f"{geometry.rope_theta:g}: they belong to another model"
        )
    return FactorsModel.of(model.id, model.revision, geometry).model_dump()


def _holders(document: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    """Yield the dictionary that contains ``long_factor`` and those around it, innermost first."""
    if "long_factor" in document:
        yield document
        return
    for value in document.values():
        if isinstance(value, dict) and depth and (found := list(_holders(value, depth - 1))):
            yield from found
            yield document
            return


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the name of the source before what is wrong with it."""
    try:
        yield
    except FactorsError as error:
        raise FactorsError(f"{name}: {error}") from None
