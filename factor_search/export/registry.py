"""All engines, by the word that names them everywhere."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from factor_search.errors import ExportError, FactorSearchError
from factor_search.export.contract import Engine, Exported, Source
from factor_search.export.exllamav3 import ExLlamaV3
from factor_search.export.gguf import Gguf
from factor_search.export.huggingface import HuggingFace
from factor_search.export.mlx import MLX
from factor_search.export.ollama import Ollama
from factor_search.export.onnx import ONNX
from factor_search.export.sglang import SGLang
from factor_search.export.tensorrt_llm import TensorRTLLM
from factor_search.export.vllm import VLLM

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        HuggingFace(),
        Gguf(),
        Ollama(),
        VLLM(),
        SGLang(),
        MLX(),
        ExLlamaV3(),
        TensorRTLLM(),
        ONNX(),
    )
}
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


def accepted_formats(source: Source) -> list[str]:
    """The formats that can express factors of this model, or something near."""

    def accepts(engine: Engine) -> bool:
        try:
            engine.check(source)
        except FactorSearchError:
            return False
        return True

    return [name for name, engine in ENGINES.items() if accepts(engine)]


Cost = Callable[[Source, Source], str]
"""Measures what it costs to use the second source instead of the first."""


def expressible(
    engine: Engine, source: Source, *, nearest: bool = False, cost: Cost | None = None
) -> tuple[Source, list[str]]:
    """Return what the format can express: the source itself, or with ``nearest`` the nearest to it.

    Args:
        engine: the engine.
        source: factors and model.
        nearest: whether the nearest will do.
        cost: measures what the nearest costs, for the message; None says how to have it measured.

    Returns:
        What it can express, and a sentence for each difference from the source.

    Raises:
        ExportError: it cannot express the source, and ``nearest`` is false or there is nothing near.
        FactorsError: the factors belong to another rotary geometry.
    """
    engine.check(source)
    differences, adapted, measurable = [], source, False
    for limit in engine.limits(source):
        before, adapted = adapted, limit.adapt(adapted)
        changed = (before.file, before.short) != (adapted.file, adapted.short)
        measurable = measurable or changed
        price = f", {cost(before, adapted)}" if cost and changed else ""
        differences.append(f"{limit.reason}; the nearest is {limit.nearest}{price}")
    if differences and not nearest:
        remedy = "--nearest writes that" + ("" if cost or not measurable else ", and --data measures what it costs")
        raise ExportError(f"{'; '.join(differences)}: {remedy}")
    return adapted, differences


def export(format: str, source: Source, out: Path, *, nearest: bool = False, cost: Cost | None = None) -> Exported:
    """Write factors in the format of an engine.

    Args:
        format: a key of :data:`ENGINES`.
        source: the factors and the model.
        out: the folder or file to write.
        nearest: write the nearest that the format can express, if it cannot express the factors themselves.
        cost: see :func:`expressible`.

    Raises:
        ExportError, FactorsError: see :func:`engine_named` and :func:`expressible`.
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    engine = engine_named(format)
    adapted, differences = expressible(engine, source, nearest=nearest, cost=cost)
    exported = engine.write(adapted, out)
    return replace(exported, notes=[*differences, *exported.notes], source=adapted)
