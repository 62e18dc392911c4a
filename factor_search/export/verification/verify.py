"""Shows whether an engine computes with exported factors: its scores against those of the search's own forward pass."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from factor_search.errors import VerificationError
from factor_search.export.contract import Source
from factor_search.export.verification.contract import Scorer
from factor_search.files.html import html_values
from factor_search.spec import ModelSpec

POSITIONS = 32
BEYOND = 1.25
"""A text of so many original lengths is scored, or of the target length if that is shorter."""
BEYOND_SHARE = 3 / 4
"""Share of the scored positions that lie beyond the original length, where the text has so many."""
EQUAL_MEAN, EQUAL_MAX = 5e-5, 2e-3
"""Differences in nats a token that float32 alone explains up to :data:`EXACT_TOKENS`: transformers itself is that far
from float64."""
EXACT_TOKENS = 2048
"""Beyond so many tokens the differences that float32 explains, and :data:`TELLING`, grow in proportion to the length:
the rounding error of an angle in float32 is proportional to the angle, and so to the position. llama.cpp with F32
weights at 8,448 tokens differs from transformers by 1.1e-4 on average, and by 1e-3 at most."""
CLOSE_SHARE = 1 / 3
"""An engine in reduced precision is so much nearer to the model with the factors than to any other computation."""
REDUCED_MEAN = 0.1
"""Mean difference in nats a token that quantised weights explain, which round activations to 8 bits: 0.01 to 0.1."""
TELLING = 5e-4
"""Least mean difference in nats a token between two computations that a text can tell apart."""
PLAIN, CONFIGURED, NO_ATTENTION_FACTOR = "plain RoPE", "the model as configured", "the factors without attention factor"
NO_INITIAL_TOKENS, SHORT = "the factors from the first token on", "the factors for short inputs"


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
    Verdict.INCONCLUSIVE: "may or may not compute with the factors: this text cannot tell",
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Log-probabilities by transformers in float32."""

    found: Sequence[float]
    """With the factors."""
    unscaled: Sequence[float]
    """With the plain RoPE of the model."""
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """With what a wrong engine might compute, by name: part of the factors, or the model as it is configured."""


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
    exact: bool
    """Whether the engine computes in float32 with all weights, so that only rounding of float32 is allowed."""
    mean_to_others: Mapping[str, float]
    """Mean difference of the engine's scores to each other computation that was tried, by its name."""
    nearest: str | None
    """The other computation that the engine's scores show, if they are clearly nearer to it than to the factors."""

    def require_equal(self, exported: Path, *, rename: bool = False) -> None:
        """Refuse an export with which the engine computes something else.

        Args:
            exported: the file or folder.
            rename: give it another name, which ends in ``.different``.

        Raises:
            VerificationError: it does.
        """
        if self.verdict == Verdict.DIFFERENT:
            renamed = f"; it is now {_set_aside(exported)}" if rename else ""
            raise VerificationError(f"do not use {exported}: {'; '.join(self.table().splitlines())}{renamed}")

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        sentence, differences = self.table().splitlines()
        return html_values("Verification", {"verdict": sentence, "differences": differences})

    def table(self) -> str:
        """Two lines for a terminal."""
        shown = f", namely {self.nearest}" if self.nearest and self.verdict == Verdict.DIFFERENT else ""
        return (
            f"{self.engine} {self.version} {SENTENCES[self.verdict]}{shown}: {self.verdict}\n"
            f"differences over {self.positions} positions of {self.tokens:,} tokens, in nats: mean {self.mean:.2g}, "
            f"99 % {self.p99:.2g}, largest {self.max:.2g}; without factors mean {self.unscaled_mean:.2g}, largest "
            f"{self.unscaled_max:.2g}"
        )


def _set_aside(exported: Path) -> Path:
    """Rename what was exported, so that nobody takes it for right; return the new name.

    Raises:
        VerificationError: it cannot be renamed.
    """
    numbers = ("", *(f"-{number}" for number in range(2, 1000)))
    names = (exported.with_name(f"{exported.name}.different{number}") for number in numbers)
    name = next(name for name in names if not name.exists())
    try:
        return exported.rename(name)
    except OSError as error:
        reason = error.strerror or error
        message = f"do not use {exported}: the engine computes something else, and it cannot be renamed ({reason})"
        raise VerificationError(message) from None


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
    """Return positions of which three quarters lie beyond the original length, if the text has so many there.

    The others lie in the second half of the original length. Both parts are evenly spaced.
    """
    first = min(max(1, original_length // 2), length - 1)
    border = max(first, min(original_length, length))
    beyond = min(round(BEYOND_SHARE * count), length - border)
    within = min(count - beyond, border - first)
    return [*_spread(first, border - 1, within), *_spread(border, length - 1, beyond)]


def _spread(first: int, last: int, count: int) -> list[int]:
    """``count`` different places from ``first`` to ``last``; the last is one of them."""
    return sorted(last - (last - first) * i // max(1, count - 1) for i in range(count))


def reference(source: Source, ids: Sequence[int], positions: Sequence[int]) -> Reference:
    """Score a text with transformers in float32, with the factors put into the live model.

    Scores it also with all that a wrong engine might compute instead: plain RoPE, the model as it is configured, and
    the factors without attention factor, without initial tokens, or for short inputs.

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
    factors = source.file.factors
    rows = {"": [factors], PLAIN: [loaded.geometry.unscaled]}
    if factors.attention_factor != 1:
        rows[NO_ATTENTION_FACTOR] = [replace(factors, attention_factor=1.0)]
    if factors.initial_tokens:
        rows[NO_INITIAL_TOKENS] = [replace(factors, initial_tokens=0)]
    if source.short is not None:
        rows[SHORT] = [source.short.factors]
    if loaded.geometry.base_rope_type != "default":
        rows[CONFIGURED] = []
    scores = {}
    with Injector(loaded.model, loaded.geometry) as injector:
        for name, used in rows.items():
            with injector.using(used):
                scores[name] = (-predict(loaded.model, tokens, positions).losses[0]).tolist()
    return Reference(found=scores.pop(""), unscaled=scores.pop(PLAIN), others=scores)


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
    exact = scorer.exact(exported)
    off, unscaled = _off(scores, expected.found), _off(expected.unscaled, expected.found)
    mean, unscaled_mean = statistics.fmean(off), statistics.fmean(unscaled)
    computations = {PLAIN: expected.unscaled, **expected.others}
    to_others = {name: statistics.fmean(_off(scores, other)) for name, other in computations.items()}
    apart = {name: statistics.fmean(_off(other, expected.found)) for name, other in computations.items()}
    nearest = min(to_others, key=lambda name: to_others[name])
    return Verification(
        engine=scorer.name,
        version=scorer.version() or "",
        format=scorer.format,
        tokens=len(ids),
        positions=len(positions),
        mean=mean,
        p99=float(np.quantile(off, 0.99)),
        max=float(np.max(off)),  # NaN if one is
        mean_to_unscaled=to_others[PLAIN],
        unscaled_mean=unscaled_mean,
        unscaled_max=max(unscaled),
        verdict=_verdict(mean, float(np.max(off)), exact, to_others, apart, len(ids)),
        exact=exact,
        mean_to_others=to_others,
        nearest=nearest if to_others[nearest] <= CLOSE_SHARE * mean else None,
    )


def _off(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(scores, others, strict=True)]


def _verdict(
    mean: float,
    largest: float,
    exact: bool,
    to_others: Mapping[str, float],
    apart: Mapping[str, float],
    tokens: int,
) -> Verdict:
    """Judge an engine; every comparison is false for NaN.

    Args:
        mean, largest: differences of its scores to those with the factors.
        exact: whether nothing but float32 may explain them.
        to_others: mean difference of its scores to each other computation.
        apart: mean difference of each other computation to the one with the factors.
        tokens: length of the text.
    """
    growth = max(1.0, tokens / EXACT_TOKENS)
    equal = mean <= EQUAL_MEAN * growth and largest <= EQUAL_MAX * growth
    others = [to_others[name] for name in apart if apart[name] > TELLING * growth]
    if apart[PLAIN] <= TELLING * growth:
        undecided = equal if exact else _nearest(mean, others)
        return Verdict.INCONCLUSIVE if undecided else Verdict.DIFFERENT
    if equal:
        return Verdict.EQUAL
    if exact:
        return Verdict.DIFFERENT
    if all(mean <= CLOSE_SHARE * other for other in others):
        return Verdict.CLOSE
    return Verdict.INCONCLUSIVE if _nearest(mean, others) else Verdict.DIFFERENT


def _nearest(mean: float, others: Sequence[float]) -> bool:
    """Whether reduced precision may be all that differs: nothing else is nearer, though it need not be far."""
    return mean <= REDUCED_MEAN and all(mean <= other for other in others)
