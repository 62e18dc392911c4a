"""Curves of log lambda over the rotations that a rotary pair makes within the model's original length.

A pair that completed at least one rotation in training has seen every angle. A pair that did not sees new angles as
soon as the text is longer. On all models tried, the best factors follow this distinction: they are nearly 1 for pairs
with many rotations, rise slowly towards one rotation, rise steeply just below it (the step), and are about the scale
for the slower pairs. A curve over rotations therefore means the same for any base, head size and original length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.methods.ramps import stepped
from factor_search.search.space import SearchSpace

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """A curve of the height log lambda / log s over log2 of the rotations.

    From many rotations to few, the height is 0, rises linearly to the beginning of the step, and rises in the step to
    the level.
    """

    step: float
    """log2 of the rotations in the middle of the step."""
    before_step: float
    """Height at which the step begins."""
    level: float
    """Height at which the step ends, and which all slower pairs have; 1 is lambda = s."""
    start: float
    """log2 of the rotations at which the height begins to rise from 0."""

    def factors(self, space: SearchSpace, initial_tokens: int, attention_factor: float) -> Factors:
        """Return the candidate in the space that is closest to the curve."""
        heights = stepped(space.rotations, self.step, self.before_step, self.level, self.start)
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
"""The first profiles of a search, evaluated with the closed forms. On each of five models, the best of a grid of 112
profiles was one of the first seven. The others are for models that differ, the last two for models that need hardly any
rescaling."""
LARGE_SCALE = 12.0
"""From this scale on, more first profiles depend on it."""
_LARGE = (
    (-0.8, 1.0, 1.0, 2.1),
    (-0.45, 1.4, 0.95, 2.1),
    (-0.6, 1.0, 0.7, 2.6),
    (-0.8, 1.4, 0.9, 2.7),
)
"""Their step, the rise of log lambda in it, lambda behind it as a share of the scale, and start: what is good for all
scales, and the best of three models at 16, 32 and 64 times (``python -m bench.fit_closed_form``)."""


FAR_ROTATIONS = 64.0
"""Pretrained models, whose pairs make more rotations, want factors that rise from the fastest pairs on."""
_FAR = (
    (-1.5, 0.8, 1.0, 0.0),
    (-3.0, 0.92, 1.1, 0.0),
    (0.5, 1.0, 1.0, 2.0),
    (-0.6, 0.5, 0.9, 0.0),
    (3.0, 1.1, 1.15, 0.0),
)
"""First profiles of such models: step, height before it, level, and how many octaves behind the fastest pair the height
begins to rise. On SmolLM2 at four times the first four are better than YaRN; the second is about a raised base, the
third about LongRoPE's for LLaMA2 at 256k tokens. The last, about Phi-3's, is not, but models were trained with it."""
FIRST_IF_FAR = 7
"""Of :data:`FIRST`, so many follow them."""


def first_profiles(space: SearchSpace) -> tuple[Profile, ...]:
    """The first profiles of a search, evaluated with the closed forms."""
    large = _large(space.scale) if space.scale >= LARGE_SCALE else ()
    if not reaches_far(space):
        return (*large, *FIRST)
    fastest = math.log2(max(space.rotations))
    far = (Profile(step, before, level, fastest - octaves) for step, before, level, octaves in _FAR)
    return (*far, *large, *FIRST[:FIRST_IF_FAR])


def _large(scale: float) -> tuple[Profile, ...]:
    unit = math.log(scale)
    return tuple(
        Profile(step, (math.log(level * scale) - jump) / unit, math.log(level * scale) / unit, start)
        for step, jump, level, start in _LARGE
    )


SHORT_TEXTS = (
    Profile(-0.6, 0.0, 0.8, 2.5),
    Profile(-0.6, 0.0, 0.5, 2.5),
    Profile(-0.3, 0.0, 0.8, 2.5),
    Profile(-1.0, 0.0, 0.8, 2.5),
)
"""First profiles where short texts have a limit: nothing but the step, which costs them least."""
BOUNDS = np.array([[-3.0, 2.5], [0.0, 0.9], [0.1, 1.4], [0.5, 5.0]])
"""Lowest and highest value of each number of a profile."""
FAR_BOUNDS = np.array([[-3.0, 4.0], [0.0, 1.2], [0.1, 1.6], [0.5, 16.0]])
"""The same for models with pairs that make more than :data:`FAR_ROTATIONS`."""
FLAT = 0.02
"""Height, log lambda / log s, below which a curve has not begun to rise."""
WIDTHS = np.array([0.5, 0.15, 0.12, 1.0])
"""Distance in each number that changes the loss by about the same amount."""
LARGE_SCALE_WIDTHS = np.array([0.35, 0.1, 0.08, 0.7])
"""The same for scales of :data:`LARGE_SCALE` and more, where a height is more of lambda and losses are more rugged."""


def reaches_far(space: SearchSpace) -> bool:
    """Whether a model has pairs with more rotations than :data:`FAR_ROTATIONS`."""
    return max(space.rotations) > FAR_ROTATIONS


def scaled_before_step(space: SearchSpace, factors: Factors, share: float) -> Factors:
    """Scale down log lambda at every pair before the steepest rise; the pairs behind it keep their factors.

    In terms of :class:`Steps` this changes many rises at once, one of them in the opposite direction, and a point half
    way may be worse than both ends.

    Args:
        space: space of the result.
        factors: factors that do not decrease with the pair.
        share: multiplies log lambda: 0 is no rescaling before the step, 1 is no change.
    """
    logs = np.log(factors.rescale_factors)
    step = int(np.argmax(np.diff(logs, prepend=0.0)))
    logs[:step] *= share
    return in_space(space, logs / math.log(space.scale), factors.initial_tokens, factors.attention_factor)


def sharpened(space: SearchSpace, factors: Factors) -> list[Factors]:
    """Take the pair in the middle of the step out of it: upwards, and downwards.

    The loss has a barrier where the step passes a pair, and a search stays where it began.

    Args:
        space: space of the result.
        factors: factors that do not decrease with the pair.

    Returns:
        Both, or nothing where a model has so few pairs that none lies between others.
    """
    logs = np.log(factors.rescale_factors)
    rises = np.diff(logs)
    if len(rises) < 2:
        return []
    middle = 1 + int(np.argmax(np.minimum(rises[:-1], rises[1:])))
    found = []
    for neighbour in (middle + 1, middle - 1):
        heights = logs.copy()
        heights[middle] = logs[neighbour]
        found.append(in_space(space, heights / math.log(space.scale), factors.initial_tokens, factors.attention_factor))
    return found


def softened(space: SearchSpace, factors: Factors, shares: Sequence[float]) -> list[Factors]:
    """Move one pair beside the steepest rise into it: the pair before it upwards, or the pair behind it downwards.

    A profile has no number for it where pairs lie an octave apart, and curves did not find it.

    Args:
        space: space of the result.
        factors: factors that do not decrease with the pair, of two pairs or more.
        shares: of the rise in log lambda, by which the pair is moved.
    """
    logs = np.log(factors.rescale_factors)
    rises = np.diff(logs)
    before = int(np.argmax(rises))
    found = []
    for share in shares:
        for pair, sign in ((before, 1), (before + 1, -1)):
            heights = logs.copy()
            heights[pair] += sign * share * rises[before]
            heights = heights / math.log(space.scale)
            found.append(in_space(space, heights, factors.initial_tokens, factors.attention_factor))
    return found


class Steps:
    """Non-decreasing curves through knots around a base curve: each number is the rise to the next knot, at least 0.

    The knots lie close together where pairs make between 8 and 0.2 rotations; one more lies at the last pair. Where a
    model has pairs with many more rotations and the base curve rises there already, two more lie at the first pair and
    half way from it. A rise can change without breaking the order of the heights.
    """

    def __init__(self, space: SearchSpace, base: Factors, knots: int) -> None:
        self._space = space
        self._initial_tokens = base.initial_tokens
        self._attention_factor = base.attention_factor
        rotations, last = np.log2(space.rotations), space.pairs - 1
        pairs = np.arange(space.pairs, dtype=float)

        def pair_of(log_rotations: float) -> float:
            return float(np.interp(-log_rotations, -rotations, pairs))

        first, end = pair_of(3.0), pair_of(math.log2(0.2))
        places = list(np.linspace(first, end, max(2, min(knots, round(end - first) + 1))))
        if last - end > 0.75:
            places.append(float(last))
        origin = pair_of(4.0)
        risen = self._heights(base.rescale_factors)[: math.floor(origin) + 1].max(initial=0.0)
        if reaches_far(space) and risen > FLAT:
            places = [0.0, first / 2, *places]
        self._places = np.unique(places)
        self._origin = [origin] if origin < self._places[0] - 1e-9 else []
        self._pairs = pairs
        self.start = self.vector(base.rescale_factors)
        """The rises of the base curve."""
        self._rest = self._heights(base.rescale_factors) - self._curve(self.start)

    @property
    def bounds(self) -> Vector:
        """Return the lowest and highest value of each number: shape (size, 2)."""
        return np.array([[0.0, 1.5]] * len(self.start))

    def vector(self, rescale_factors: Sequence[float]) -> Vector:
        """Return the rises of the curve that agrees with other rescale factors at the knots."""
        at_knots = np.interp(self._places, self._pairs, self._heights(rescale_factors))
        return np.maximum(np.diff(np.concatenate([[0.0], at_knots])), 0.0)

    def factors(self, rises: Vector) -> Factors:
        """Return the candidate in the space that is closest to the curve."""
        heights = np.maximum.accumulate(self._curve(rises) + self._rest)
        return in_space(self._space, heights, self._initial_tokens, self._attention_factor)

    def _heights(self, rescale_factors: Sequence[float]) -> Vector:
        return np.asarray(np.log(rescale_factors) / math.log(self._space.scale))

    def _curve(self, rises: Vector) -> Vector:
        heights = np.cumsum(np.maximum(rises, 0.0))
        origin = self._origin
        return np.asarray(np.interp(self._pairs, [*origin, *self._places], [*([0.0] * len(origin)), *heights]))


def in_space(space: SearchSpace, heights: Vector, initial_tokens: int, attention_factor: float) -> Factors:
    """Return the candidate with given heights log lambda / log s of shape (pairs,), projected into the space."""
    highest = math.log(1 + space.step * space.top_level)
    factors = np.exp(np.clip(heights * math.log(space.scale), 0.0, highest))
    return space.factors(space.project(Factors.of(factors.tolist(), initial_tokens, attention_factor)))
