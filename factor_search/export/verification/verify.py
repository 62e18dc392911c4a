"""Shows whether an engine computes with exported factors: its scores against those of the search's own forward pass."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from factor_search.errors import VerificationError
from factor_search.export.contract import Source
from factor_search.export.verification.contract import Scorer
from factor_search.spec import ModelSpec

POSITIONS = 32
BEYOND = 1.25
"""A text of so many original lengths is scored, or of the target length if that is shorter."""
EQUAL_MEAN, EQUAL_MAX = 5e-5, 2e-3
"""Differences in nats a token that float32 alone explains: transformers itself is that far from float64."""
CLOSE_SHARE = 1 / 3
"""An engine in another precision is so much nearer to the model with the factors than to the one without."""
TELLING = 5e-4
"""Least difference in nats that factors must make for a text to tell whether they are in force."""


class Verdict(StrEnum):
    """What a verification shows."""

    EQUAL = "equal"
    CLOSE = "close"
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"


SENTENCES = {
    Verdict.EQUAL: "computes with the factors",
    Verdict.CLOSE: "computes with the factors, in another precision",
    Verdict.DIFFERENT: "computes something else",
    Verdict.INCONCLUSIVE: "cannot be told apart from the model without factors on this text",
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Log-probabilities by transformers in float32."""

    found: Sequence[float]
    """With the factors."""
    unscaled: Sequence[float]
    """With the plain RoPE of the model."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The comparison; differences are absolute, in nats a token."""

    engine: str
    version: str
    format: str
    tokens: int
    positions: int
    mean: float
    p99: float
    max: float
    mean_to_unscaled: float
    """Of the engine's scores to those of the model without factors."""
    unscaled_mean: float
    """Difference between the model with the factors and without: how much the factors matter on this text."""
    unscaled_max: float
    verdict: Verdict

    def require_equal(self, exported: Path) -> None:
        """Refuse an export with which the engine computes something else.

        Raises:
            VerificationError: it does.
        """
        if self.verdict == Verdict.DIFFERENT:
            raise VerificationError(f"do not use {exported}: {self.table()}")

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON."""
        return asdict(self)

    def table(self) -> str:
        """Two lines for a terminal."""
        return (
            f"{self.engine} {self.version} {SENTENCES[self.verdict]}: {self.verdict}\n"
            f"differences over {self.positions} positions of {self.tokens:,} tokens, in nats: mean {self.mean:.2g}, "
            f"99 % {self.p99:.2g}, largest {self.max:.2g}; without factors mean {self.unscaled_mean:.2g}, largest "
            f"{self.unscaled_max:.2g}"
        )


def scored_length(source: Source, length: int | None = None) -> int:
    """Return how many tokens of text are scored.

    Raises:
        VerificationError: the length is not above the original one, so the factors need not matter.
    """
    original, target = source.file.model.original_length, source.file.target_length
    chosen = min(target, round(BEYOND * original)) if length is None else length
    if length is not None and length <= original:
        raise VerificationError(f"length {length} is not above the original length of {original} tokens")
    return max(chosen, 2)


def scored_positions(length: int, original_length: int, count: int = POSITIONS) -> list[int]:
    """Return evenly spaced positions; most lie beyond the original length, if the text does."""
    first = min(max(1, original_length // 2), length - 1)
    return sorted({round(first + (length - 1 - first) * i / max(1, count - 1)) for i in range(count)})


def reference(source: Source, ids: Sequence[int], positions: Sequence[int]) -> Reference:
    """Score a text with transformers in float32, with the factors put into the live model and without.

    Args:
        source: model and factors.
        ids: tokens of the text.
        positions: as for :meth:`Scorer.log_probabilities`.

    Raises:
        ModelError: the model cannot be loaded, or factors cannot act on it.
    """
    import torch

    from factor_search.model.injection import Injector
    from factor_search.model.loading import load_model
    from factor_search.model.losses import predict

    model: ModelSpec = source.model.model_copy(update={"dtype": "float32"})
    loaded = load_model(model)
    tokens = torch.tensor([list(ids)], device=loaded.model.device)
    with Injector(loaded.model, loaded.geometry) as injector:
        scores = []
        for factors in (source.file.factors, loaded.geometry.unscaled):
            with injector.using([factors]):
                scores.append((-predict(loaded.model, tokens, positions).losses[0]).tolist())
    return Reference(found=scores[0], unscaled=scores[1])


def compare(
    scorer: Scorer, exported: Path, expected: Reference, ids: Sequence[int], positions: Sequence[int]
) -> Verification:
    """Score a text with an engine, and compare.

    Args:
        scorer: of an installed engine.
        exported: what was exported for it.
        expected: the same positions by :func:`reference`.
        ids: tokens of the text.
        positions: as for :meth:`Scorer.log_probabilities`.

    Raises:
        VerificationError: the engine cannot load or run it.
    """
    scores = scorer.log_probabilities(exported, ids, positions)
    off = sorted(abs(a - b) for a, b in zip(scores, expected.found, strict=True))
    unscaled = [abs(a - b) for a, b in zip(expected.unscaled, expected.found, strict=True)]
    mean, unscaled_mean = statistics.fmean(off), statistics.fmean(unscaled)
    to_unscaled = statistics.fmean(abs(a - b) for a, b in zip(scores, expected.unscaled, strict=True))
    return Verification(
        engine=scorer.name,
        version=scorer.version() or "",
        format=scorer.format,
        tokens=len(ids),
        positions=len(positions),
        mean=mean,
        p99=off[min(len(off) - 1, int(0.99 * len(off)))],
        max=off[-1],
        mean_to_unscaled=to_unscaled,
        unscaled_mean=unscaled_mean,
        unscaled_max=max(unscaled),
        verdict=_verdict(mean, off[-1], to_unscaled, unscaled_mean),
    )


def _verdict(mean: float, largest: float, to_unscaled: float, unscaled_mean: float) -> Verdict:
    if unscaled_mean < TELLING:
        return Verdict.INCONCLUSIVE if mean <= EQUAL_MEAN else Verdict.DIFFERENT
    if mean <= EQUAL_MEAN and largest <= EQUAL_MAX:
        return Verdict.EQUAL
    return Verdict.CLOSE if mean <= CLOSE_SHARE * to_unscaled else Verdict.DIFFERENT
