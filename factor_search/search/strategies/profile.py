"""Curves of log lambda over turns: how often a rotary pair goes round within the model's original length.

A pair that completed at least one turn in training has met every angle; one that did not meets angles beyond those it
was trained for as soon as the text is longer. On the models tried the best factors tell the two apart: nearly 1 for
many turns, a gentle foot down to one turn, a steep step below it, and about the scale from there on. So a curve over
turns means the same for any base, head size and original length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace

Vector = NDArray[np.float64]
STEP_WIDTH = 0.5
"""Of the step, in octaves of turns."""


@dataclass(frozen=True)
class Profile:
    """log lambda / log s against log2 of turns: 0, then a line up to the foot, then the step up to the level."""

    step: float
    """log2 of the turns in the middle of the step."""
    foot: float
    """Height at which the step begins."""
    level: float
    """Height at which it ends, and which all slower pairs have; 1 is lambda = s."""
    start: float
    """log2 of the turns where the foot leaves 0."""

    def factors(self, space: SearchSpace, initial_tokens: int, attention_factor: float) -> Factors:
        """The candidate in the space that is closest to the curve."""
        half = STEP_WIDTH / 2
        start = max(self.start, self.step + half + 0.1)
        nodes = [-start, -self.step - half, -self.step + half]
        heights = np.interp(-np.log2(space.turns), nodes, [0.0, self.foot, max(self.level, self.foot)])
        return in_space(space, heights, initial_tokens, attention_factor)


FIRST = (
    Profile(-0.6, 0.3, 0.85, 2.5),
    Profile(0.0, 0.45, 1.0, 2.5),
    Profile(-0.3, 0.45, 0.85, 2.5),
    Profile(-0.6, 0.15, 1.0, 2.5),
    Profile(-0.3, 0.15, 1.0, 2.5),
    Profile(-0.6, 0.15, 0.85, 4.0),
    Profile(0.0, 0.3, 0.85, 2.5),
    Profile(-0.6, 0.6, 1.0, 2.5),
    Profile(0.6, 0.45, 1.0, 2.5),
    Profile(-0.9, 0.3, 0.85, 4.0),
    Profile(-1.5, 0.15, 0.15, 4.0),
    Profile(-1.5, 0.15, 0.5, 4.0),
)
"""Where a search begins, beside the closed forms. Of a grid of 112 profiles one of the first seven was the best on each
of five models; the others are for models that do not agree, the last two for those that want hardly any rescaling."""
BOUNDS = np.array([[-3.0, 2.5], [0.0, 0.9], [0.1, 1.4], [0.5, 5.0]])
"""Lowest and highest value of each number of a profile."""
WIDTHS = np.array([0.5, 0.15, 0.12, 1.0])
"""How far each has to move to make about as much of a difference."""


def with_lower_foot(space: SearchSpace, factors: Factors, share: float) -> Factors:
    """A candidate with log lambda times a share at every pair before its steepest rise; the level behind it stays.

    For the rises of :class:`Steps` this is many moves at once, one of them against the others, and half of the way may
    be worse than either end.

    Args:
        space: that the result is of.
        factors: lambda not decreasing with the pair.
        share: 0 (no rescaling there) to 1 (as it is).
    """
    logs = np.log(factors.rescale_factors)
    foot = int(np.argmax(np.diff(logs, prepend=0.0)))
    logs[:foot] *= share
    return in_space(space, logs / math.log(space.scale), factors.initial_tokens, factors.attention_factor)


class Steps:
    """Non-decreasing curves through knots around a base curve: each number is the rise to the next knot, at least 0.

    Knots stand close together where pairs make between 8 turns and a fifth of one, and one at the last pair. Rises
    rather than heights, so that moving one does not run into the order that its neighbours must keep.
    """

    def __init__(self, space: SearchSpace, base: Factors, knots: int) -> None:
        self._space = space
        self._initial_tokens = base.initial_tokens
        self._attention_factor = base.attention_factor
        turns, last = np.log2(space.turns), space.pairs - 1
        pairs = np.arange(space.pairs, dtype=float)

        def pair_of(log_turns: float) -> float:
            return float(np.interp(-log_turns, -turns, pairs))

        first, end = pair_of(3.0), pair_of(math.log2(0.2))
        places = list(np.linspace(first, end, max(2, min(knots, round(end - first) + 1))))
        if last - end > 0.75:
            places.append(float(last))
        self._places = np.unique(places)
        origin = pair_of(4.0)
        self._origin = [origin] if origin < self._places[0] - 1e-9 else []
        self._pairs = pairs
        self.start = self.vector(base.rescale_factors)
        """The base curve."""
        self._rest = self._heights(base.rescale_factors) - self._curve(self.start)

    @property
    def bounds(self) -> Vector:
        """Lowest and highest value of each number."""
        return np.array([[0.0, 1.5]] * len(self.start))

    def vector(self, rescale_factors: Sequence[float]) -> Vector:
        """The rises of the curve that meets other rescale factors at the knots."""
        at_knots = np.interp(self._places, self._pairs, self._heights(rescale_factors))
        return np.maximum(np.diff(np.concatenate([[0.0], at_knots])), 0.0)

    def factors(self, rises: Vector) -> Factors:
        """The candidate in the space that is closest to the curve."""
        heights = np.maximum.accumulate(self._curve(rises) + self._rest)
        return in_space(self._space, heights, self._initial_tokens, self._attention_factor)

    def _heights(self, rescale_factors: Sequence[float]) -> Vector:
        return np.asarray(np.log(rescale_factors) / math.log(self._space.scale))

    def _curve(self, rises: Vector) -> Vector:
        heights = np.cumsum(np.maximum(rises, 0.0))
        origin = self._origin
        return np.asarray(np.interp(self._pairs, [*origin, *self._places], [*([0.0] * len(origin)), *heights]))


def in_space(space: SearchSpace, heights: Vector, initial_tokens: int, attention_factor: float) -> Factors:
    """The candidate for log lambda / log s at each pair, snapped into the space."""
    highest = math.log(1 + space.step * space.top_level)
    factors = np.exp(np.clip(heights * math.log(space.scale), 0.0, highest))
    return space.factors(space.project(Factors.of(factors.tolist(), initial_tokens, attention_factor)))
