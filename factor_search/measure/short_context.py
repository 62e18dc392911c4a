"""Measures short-context degradation within the original length, and how much of it short factors recover."""

from pathlib import Path
from typing import Any

from factor_search.factors import Factors
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.figures import compared, figures, share
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.methods import untouched
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import ModelSpec
from factor_search.text.samples import SampleSet


def short_context(
    original: ModelSpec, loaded: LoadedModel, candidates: dict[str, Factors], documents: SampleSet, record: Path
) -> dict[str, Any]:
    """Compare the original model and the extended model with given factors, in windows of the original length.

    Args:
        original: the model before the extension, which is used with the RoPE of its configuration.
        loaded: the extended model.
        candidates: factors named ``long``, and ``short`` if there is a readjustment.
        documents: documents of plain text, each with the same whole number of windows.
        record: file that stores the evaluations.

    Returns:
        A JSON document with the window ``length`` in tokens, the number of ``windows``, a row for each model, and the
        share of the degradation that the short factors recover, or null.
    """
    length = loaded.geometry.original_length
    losses = {"original": _as_configured(original, documents, length, record)}
    for name, factors in candidates.items():
        losses[name] = _losses(loaded, factors, documents, length, record)
    windows = len(documents.samples[0].tokens) // length
    tokens = [windows * (length - document.first_scored) for document in documents.samples]
    rows = [
        {"name": name, **(figures(one, tokens) or {"perplexity": None}), **compared(one, losses["original"], tokens)}
        for name, one in losses.items()
    ]
    return {"length": length, "windows": windows, "rows": rows, "recovered": _recovered(losses)}


def _as_configured(spec: ModelSpec, documents: SampleSet, length: int, record: Path) -> tuple[float, ...]:
    loaded = load_model(spec)
    return _losses(loaded, untouched(loaded.geometry, length), documents, length, record)


def _losses(
    loaded: LoadedModel, factors: Factors, documents: SampleSet, length: int, record: Path
) -> tuple[float, ...]:
    """Return the mean loss of each document over consecutive windows (nats per token), or () if it failed."""
    with Ledger(record) as ledger, LocalEvaluator(loaded, length, stride=length) as local:
        return next(RecordedEvaluator(local, ledger).evaluate_all([factors], documents)).losses


def _recovered(losses: dict[str, tuple[float, ...]]) -> dict[str, Any] | None:
    """Compute the share of the long factors' degradation that the short factors recover."""
    if not all(losses.values()) or "short" not in losses:
        return None
    long, short, original = (losses[name] for name in ("long", "short", "original"))
    won = [a - b for a, b in zip(long, short, strict=True)]
    cost = [a - b for a, b in zip(long, original, strict=True)]
    return share(won, cost)
