"""Reads known factors from files and earlier jobs, and rescales them to the scale of a search."""

import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

    Raises:
        FactorsError: some factors belong to another model; the message names their source.
    """
    scale = target_length / geometry.original_length
    given = [
        KnownFactors(source=f"warm_start.rescale_factors[{number}]", rescale_factors=vector)
        for number, vector in enumerate(asked.rescale_factors)
    ]
    return list(dict.fromkeys(_fitted(known, geometry, scale) for known in [*asked.factors, *given]))


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


def _fitted(known: KnownFactors, geometry: Geometry, scale: float) -> Factors:
    """Check that factors belong to the model, and rescale them to the scale of the search."""
    if len(known.rescale_factors) != geometry.pairs:
        raise FactorsError(
            f"{known.source}: {len(known.rescale_factors)} rescale factors, but {geometry.architecture} has "
            f"{geometry.pairs} rotary pairs: they belong to another model"
        )
    for name in ("rotary_dim", "rope_theta"):
        theirs, ours = getattr(known, name), getattr(geometry, name)
        if theirs is not None and theirs != ours:
            raise FactorsError(
                f"{known.source}: the factors are for {name} {theirs:g}, but {geometry.architecture} has {ours:g}: "
                "they belong to another model"
            )
    known_scale = known.scale or scale
    attention = known.attention_factor or longrope_attention_factor(known_scale, geometry.original_length)
    try:
        return rescaled(Factors.of(known.rescale_factors, known.initial_tokens, attention), known_scale, scale)
    except FactorsError as error:
        raise FactorsError(f"{known.source}: {error}") from None


def _content(document: Any) -> dict[str, Any]:
    """Return the fields of :class:`KnownFactors` that a document contains."""
    if isinstance(document, list):
        return {"rescale_factors": document}
    if not isinstance(document, dict):
        raise FactorsError("the content is not a factors file, a list of numbers or a longrope configuration")
    if "schema" not in document:
        return _longrope(document)
    file = parse_factors(document)
    theirs = {"rotary_dim": file.model.rotary_dim, "rope_theta": file.model.rope_theta}
    return file.factors.as_json() | theirs | {"scale": file.scale}


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
    theirs = {"rope_theta": found.get("rope_theta"), "attention_factor": attention}
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
