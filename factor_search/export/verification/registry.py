"""The scorers of all engines, by the word of ``verify --engine``."""

import os
from collections.abc import Mapping

from factor_search.errors import VerificationError
from factor_search.export.verification.contract import Scorer
from factor_search.export.verification.llama_cpp import LlamaCpp
from factor_search.export.verification.mlx import MLXScorer
from factor_search.export.verification.onnx import ONNXScorer
from factor_search.export.verification.transformers import Transformers
from factor_search.export.verification.vllm import VLLMScorer

SCORERS: Mapping[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Transformers(),
        LlamaCpp(threads=os.cpu_count() or 1, as_f32=None),
        MLXScorer(),
        VLLMScorer(),
        ONNXScorer(),
    )
}
"""One entry for each engine that can be run here."""


def scorer_named(name: str) -> Scorer:
    """Return the scorer of an engine that is installed.

    Raises:
        VerificationError: there is none, or the engine is not installed.
    """
    scorer = SCORERS.get(name)
    if scorer is None:
        raise VerificationError(f"unknown engine {name!r}: choose one of {', '.join(SCORERS)}")
    if scorer.version() is None:
        raise VerificationError(f"{name} is not installed: pip install {scorer.package}")
    return scorer


def installed_for(format: str) -> list[Scorer]:
    """The installed engines that load a format."""
    return [scorer for scorer in SCORERS.values() if scorer.format == format and scorer.version() is not None]
