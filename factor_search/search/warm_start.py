"""Reads known factors from files and earlier jobs, and rescales them to the scale of a search."""

import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from factor_search.errors import FactorsError, SpecError
from factor_search.factors import Factors
from factor_search.factors_file import parse_factors
from factor_search.files.json_documents import explain, read_json
from factor_search.files.reading import readable
from factor_search.methods import longrope_attention_factor
from factor_search.model.geometry import Geometry
from factor_search.spec import JobSpec, KnownFactors, WarmStartSpec

LARGEST_BYTES = 2**24
DEEPEST = 4
"""Largest number of dictionaries around ``long_factor`` in a configuration."""


def embedded(spec: JobSpec, factors_of_job: Callable[[str], Any] | None = None) -> JobSpec:
    """Read ``warm_start.files`` and ``.jobs`` into ``warm_start.factors`` of a specification.

    The result describes the same search even if the files change or the jobs are deleted.

    Args:
        spec: the specification as the user wrote it; if nothing is left to read, it is returned unchanged.
        factors_of_job: returns the factors file of a finished job; None where there is no service.

    Raises:
        FactorsError: a file cannot be read, or does not contain factors.
        SpecError: the specification names jobs, but there is no service.
    """
    asked = spec.warm_start
    if not asked.files and not asked.jobs:
        return spec
    if asked.jobs and factors_of_job is None:
        raise SpecError(
            f"warm_start.jobs names job {asked.jobs[0]}, which needs the service that ran it: submit this job there, "
            "or give that job's factors.json in warm_start.files"
        )
    known = [*asked.factors, *(read_known(file) for file in asked.files)]
    if factors_of_job is not None:
        known += [known_from(factors_of_job(job_id), f"job {job_id}") for job_id in asked.jobs]
    warm_start = WarmStartSpec(factors=known, rescale_factors=asked.rescale_factors)
    return spec.model_copy(update={"warm_start": warm_start})


def read_known(name: str) -> KnownFactors:
    """Read known factors from a file.

    Raises:
        FactorsError: the file cannot be read, or does not contain factors.
        SpecError: the file is not in a folder that may be read.
    """
    file = Path(name)
    try:
        readable(name, "warm_start.files")
        if file.exists() and not file.is_file():
            raise FactorsError(f"{file} is not a file: a warm start needs a JSON file with rescale factors")
        if file.is_file() and file.stat().st_size > LARGEST_BYTES:
            raise FactorsError(
                f"{file} has more than {LARGEST_BYTES // 2**20} MiB: it is not a file of rescale factors"
            )
    except (OSError, ValueError) as error:  # the name is too long, or contains NUL
        raise FactorsError(f"cannot read {name[:100]}: {getattr(error, 'strerror', None) or error}") from None
    return known_from(read_json(file, FactorsError), name)


def known_from(document: Any, source: str) -> KnownFactors:
    """Read known factors from a factors file, a list of rescale factors, or a longrope configuration.

    Args:
        document: the content of the JSON file.
        source: where the document comes from, for error messages.

    Raises:
        FactorsError: the document does not contain valid factors; the message names the source and the reason.
    """
    try:
        return KnownFactors(source=source, **_content(document))
    except ValidationError as error:
        raise FactorsError(f"{source}: {explain(error)}") from None
    except FactorsError as error:
        raise FactorsError(f"{source}: {error}") from None


def starting_points(asked: WarmStartSpec, geometry: Geometry, target_length: int) -> list[Factors]:
    """Return all distinct known factors, rescaled to the scale of the target length.

    Factors of another model are carried to this one in two ways, by rotations first (:func:`carried`).

    Raises:
        FactorsError: some factors belong to another model, and cannot be carried; the message names their source.
    """
    scale = target_length / geometry.original_length
    given = [
        KnownFactors(source=f"warm_start.rescale_factors[{number}]", rescale_factors=vector)
        for number, vector in enumerate(asked.rescale_factors)
    ]
    return list(dict.fromkeys(one for known in [*asked.factors, *given] for one in _fitted(known, geometry, scale)))


def rescaled(factors: Factors, scale: float, to_scale: float) -> Factors:
    """Rescale factors for another scale; pairs that are not interpolated keep their factors.

    lambda' = 1 + (lambda - 1) (s' - 1) / (s - 1) where lambda > 1, so 1 stays 1 and s becomes s'. The attention factor
    keeps its position between 1 and LongRoPE's formula: a'^2 - 1 = (a^2 - 1) ln s' / ln s.

    Args:
        factors: factors for the scale s.
        scale: s.
        to_scale: s'.
    """
    if scale <= 1 or to_scale <= 1 or math.isclose(scale, to_scale):
        return factors
    stretch = (to_scale - 1) / (scale - 1)
    attention = factors.attention_factor
    if attention > 1:
        attention = math.sqrt(1 + (attention**2 - 1) * math.log(to_scale) / math.log(scale))
    lambdas = [1 + (value - 1) * stretch if value > 1 else value for value in factors.rescale_factors]
    return Factors.of(lambdas, factors.initial_tokens, attention)


def carried(known: KnownFactors, geometry: Geometry, scale: float) -> list[Factors]:
    """Carry the factors of another model to this one: rescaled to its scale, they stay where they were.

    First over the rotations that a pair makes within the original length, which is what a model has learned about a
    pair; then over the index of the pair, from the first to the last. Whichever is better is for the search to find.

    Args:
        known: the factors, with their scale, base and original length.
        geometry: of this model.
        scale: s of the result.
    """
    theirs = len(known.rescale_factors)
    assert known.scale is not None
    assert known.rope_theta is not None
    assert known.original_length is not None
    attention = known.attention_factor or longrope_attention_factor(known.scale, known.original_length)
    at_scale = rescaled(Factors.of(known.rescale_factors, known.initial_tokens, attention), known.scale, scale)
    logs = np.log(at_scale.rescale_factors)
    first = math.log2(known.original_length / (2 * math.pi))
    rotations = first - np.arange(theirs) / theirs * math.log2(known.rope_theta)
    ours = np.log2(geometry.original_length / np.asarray(geometry.wavelengths))
    by_rotations = np.interp(-ours, -rotations, logs)
    by_index = np.interp(np.linspace(0, 1, geometry.pairs), np.linspace(0, 1, theirs), logs)
    return [
        Factors.of(np.exp(curve).tolist(), known.initial_tokens, at_scale.attention_factor)
        for curve in (by_rotations, by_index)
    ]


def _fitted(known: KnownFactors, geometry: Geometry, scale: float) -> list[Factors]:
    """The factors at the scale of the search; those of another model carried to this one."""
    pairs = len(known.rescale_factors)
    other = f"{pairs} rescale factors, but {geometry.architecture} has {geometry.pairs} rotary pairs"
    if pairs == geometry.pairs:
        other = ""
        for name in ("rotary_dim", "rope_theta"):
            theirs, ours = getattr(known, name), getattr(geometry, name)
            if theirs is not None and theirs != ours:
                other = f"the factors are for {name} {theirs:g}, but {geometry.architecture} has {ours:g}"
                break
    try:
        if other:
            _check_can_be_carried(known, scale, other)
            return carried(known, geometry, scale)
        known_scale = known.scale or scale
        attention = known.attention_factor or longrope_attention_factor(known_scale, geometry.original_length)
        return [rescaled(Factors.of(known.rescale_factors, known.initial_tokens, attention), known_scale, scale)]
    except FactorsError as error:
        raise FactorsError(f"{known.source}: {error}") from None


def _check_can_be_carried(known: KnownFactors, scale: float, other: str) -> None:
    """Refuse factors of another model of which too little is known.

    Raises:
        FactorsError: says what is missing.
    """
    missing = [name for name in ("scale", "rope_theta", "original_length") if getattr(known, name) is None]
    if missing:
        raise FactorsError(
            f"{other}: they belong to another model, and without its {' and '.join(missing)} they cannot be carried to "
            "this one"
        )
    assert known.scale is not None
    if known.scale <= 1 or scale <= 1:
        raise FactorsError(f"{other}: they belong to another model, and factors for scale 1 cannot be carried")


def _content(document: Any) -> dict[str, Any]:
    """Return the fields of :class:`KnownFactors` that a document contains."""
    if isinstance(document, list):
        return {"rescale_factors": document}
    if not isinstance(document, dict):
        raise FactorsError("the content is not a factors file, a list of numbers or a longrope configuration")
    if "schema" not in document:
        return _table(document) if "rescale_factors" in document else _longrope(document)
    file = parse_factors(document)
    theirs = {"rotary_dim": file.model.rotary_dim, "rope_theta": file.model.rope_theta}
    return file.factors.as_json() | theirs | {"scale": file.scale, "original_length": file.model.original_length}


def _table(document: dict[str, Any]) -> dict[str, Any]:
    """Read a published table: ``rescale_factors`` with what is known of their model and length."""
    model = document.get("model") if isinstance(document.get("model"), dict) else {}
    assert isinstance(model, dict)
    known = {name: model.get(name) for name in ("rope_theta", "rotary_dim", "original_length")}
    scale, target = document.get("scale"), document.get("target_length")
    if scale is None and target is not None and known["original_length"] is not None:
        scale = _number(target, "target_length") / _number(known["original_length"], "model.original_length")
    own = {name: document[name] for name in ("attention_factor", "initial_tokens") if document.get(name) is not None}
    return {"rescale_factors": document["rescale_factors"], "scale": scale, **known, **own}


def _longrope(document: dict[str, Any]) -> dict[str, Any]:
    """Read a Hugging Face configuration, or the part of one that contains ``long_factor``."""
    holders = _holders(document, DEEPEST)
    if not holders:
        raise FactorsError(
            "the file has no schema of a factors file and no long_factor of a longrope configuration: give a "
            "factors.json, a config.json with long_factor, or a list of numbers"
        )
    scaling, found = holders[0], ChainMap(*holders)
    longest, original = found.get("max_position_embeddings"), found.get("original_max_position_embeddings")
    scale = scaling.get("factor")
    if scale is None and longest is not None and original is not None:
        scale = _number(longest, "max_position_embeddings") / _number(original, "original_max_position_embeddings")
    attention = scaling.get("attention_factor", scaling.get("long_mscale"))
    theirs = {"rope_theta": found.get("rope_theta"), "attention_factor": attention, "original_length": original}
    return {"rescale_factors": scaling["long_factor"], "scale": scale, **theirs}


def _holders(document: dict[str, Any], depth: int) -> Sequence[dict[str, Any]]:
    """Return the dictionary that contains ``long_factor`` and those around it, innermost first; empty if none does."""
    if "long_factor" in document:
        return (document,)
    for value in document.values():
        if isinstance(value, dict) and depth and (found := _holders(value, depth - 1)):
            return (*found, document)
    return ()


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FactorsError(f"{name} is {value!r}: it must be a number above 0")
    return float(value)
