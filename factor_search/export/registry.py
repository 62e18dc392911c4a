"""All engines, by the word that names them everywhere."""

from collections.abc import Mapping
from pathlib import Path

from factor_search.errors import ExportError
from factor_search.export.contract import Engine, Exported, Source
from factor_search.export.gguf import Gguf
from factor_search.export.huggingface import HuggingFace
from factor_search.export.ollama import Ollama

ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (HuggingFace(), Gguf(), Ollama())}
"""One entry for each file of this folder that writes a format."""

REFUSED: Mapping[str, str] = {
    "tgi": "its attention factor multiplies angles instead of cos and sin, so the model would compute something else",
    "openvino-genai": "on a GGUF file it ignores both the factors and the attention factor",
    "mistral.rs": "on a configuration it does not read the attention factor",
}
"""Engines that read such factors wrongly or not at all, with the reason."""


def engine_named(name: str) -> Engine:
    """Return an engine.

    Raises:
        ExportError: there is none of this name, or the engine cannot compute with factors.
    """
    if name in ENGINES:
        return ENGINES[name]
    if name in REFUSED:
        raise ExportError(f"there is no export for {name}: {REFUSED[name]}")
    raise ExportError(f"unknown format {name!r}: choose one of {', '.join(ENGINES)}")


def expressible(engine: Engine, source: Source, nearest: bool = False) -> Source:
    """Return what the format can express: the source itself, or with ``nearest`` the nearest to it.

    Raises:
        ExportError: it cannot express the source, and ``nearest`` is false or there is nothing near.
        FactorsError: the factors belong to another rotary geometry.
    """
    engine.check(source)
    limits = engine.limits(source)
    if limits and not nearest:
        reasons = "; ".join(f"{limit.reason} (the nearest is {limit.nearest})" for limit in limits)
        raise ExportError(f"{reasons}: --nearest writes the nearest; with --data it also measures what that costs")
    for limit in limits:
        source = limit.adapt(source)
    return source


def export(format: str, source: Source, out: Path, nearest: bool = False) -> Exported:
    """Write factors in the format of an engine.

    Args:
        format: a key of :data:`ENGINES`.
        source: the factors and the model.
        out: the folder or file to write.
        nearest: write the nearest that the format can express, if it cannot express the factors themselves.

    Raises:
        ExportError, FactorsError: see :func:`engine_named` and :func:`expressible`.
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    engine = engine_named(format)
    return engine.write(expressible(engine, source, nearest), out)
