"""Spaces of closed forms with free numbers, for engines that read the numbers and no lists of factors."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.methods import yarn_attention_factor, yarn_of_numbers
from factor_search.model.geometry import Geometry

Vector = NDArray[np.float64]
DIGITS = 4
"""Significant digits of the numbers."""
FAST, SLOW = 32.0, 1.0
"""YaRN's own rotations at the begin and the end of its ramp."""
FACTORS = (0.0, 1.5)
"""Least and largest log factor / log s."""
BASES = (0.0, 2.0)
"""Least and largest log base'/base, in units of that of NTK, d / (d - 2) log s."""
LOG_ROTATIONS = ((-1.0, 8.0), (-4.0, 4.0))
"""Least and largest log2 of the rotations at the begin and at the end of the ramp."""
REFINED = 4
"""Points of a grid from which the nearest numbers are looked for."""
NARROWEST = 1.1
"""The ramp begins at so many times the rotations of its end, or more."""
WARMEST = 2.0
"""Largest correction of the attention factor, in units of YaRN's 0.1 ln s."""
STARTS = (
    (1.0, 5.0, 0.0, 1.0, 0.0),
    (1.0, 5.0, 0.0, 0.7, 0.0),
    (1.0, 5.0, 0.0, 0.0, 0.0),
    (1.0, 4.0, -0.5, 1.0, 0.0),
    (1.0, 3.0, 0.0, 1.0, 0.0),
    (1.0, 2.0, -1.0, 1.0, 0.0),
    (0.85, 3.0, -0.5, 1.0, 0.0),
    (1.15, 5.0, 0.0, 1.0, 0.0),
    (0.85, 2.0, -0.5, 1.0, 0.3),
    (0.6, 3.0, -0.5, 1.0, 0.4),
    (0.5, 5.0, 0.0, 1.0, 1.0),
)
"""First numbers of a search, YaRN's own first: log factor / log s, log2 of both rotations, correction, base."""
BASE_STARTS = tuple((0.0, 0.0, 0.0, 0.0, share) for share in (1.0, 1.15, 1.3, 0.85, 0.7, 0.5, 1.6, 0.2))


@dataclass(frozen=True)
class YarnNumbers:
    """YaRN's numbers as configurations have them."""

    factor: float
    beta_fast: float
    beta_slow: float
    attention_factor: float
    rope_theta: float


class FormSpace:
    """All candidates that are YaRN with some numbers, or a plain base."""

    def __init__(
        self, kind: Literal["yarn", "base"], geometry: Geometry, scale: float, attention_factor: float | None
    ) -> None:
        """Describe a space.

        Args:
            kind: ``yarn``, or ``base`` for a base alone.
            geometry: of the model.
            scale: s.
            attention_factor: of all candidates; None searches it, with ``yarn``.
        """
        self.kind, self.scale = kind, scale
        self._geometry, self._attention_factor = geometry, attention_factor
        self._numbers: dict[Factors, YarnNumbers] = {}
        ntk = geometry.exponent_dim / max(geometry.exponent_dim - 2, 1)
        self._log_scale, self._log_ntk = math.log(scale), ntk * math.log(scale)
        free = [kind == "yarn"] * 3 + [kind == "yarn" and attention_factor is None, True]
        bounds = np.array([FACTORS, *LOG_ROTATIONS, (0.0, WARMEST), BASES])
        self._free = np.array(free)
        self.bounds: Vector = bounds[self._free]
        """Lowest and highest value of each free number, shape (numbers, 2)."""
        self.widths: Vector = np.array([0.1, 0.7, 0.5, 0.3, 0.12])[self._free]
        """Distance in each number that changes the loss by about the same amount."""

    def starts(self) -> list[Vector]:
        """The first points of a search."""
        return list(np.array(STARTS if self.kind == "yarn" else BASE_STARTS)[:, self._free])

    def factors(self, point: Sequence[float] | Vector) -> Factors:
        """Return the candidate at a point, whose numbers are rounded to four digits."""
        numbers = self._numbers_at(point)
        factors = yarn_of_numbers(self._geometry, **asdict(numbers))
        self._numbers.setdefault(factors, numbers)
        return factors

    def _numbers_at(self, point: Sequence[float] | Vector) -> YarnNumbers:
        whole = np.array([0.0, 0.0, 0.0, 1.0, 0.0])
        whole[self._free] = np.clip(point, *self.bounds.T)
        height, fast, slow, correction, base = whole.tolist()
        beta_slow = _rounded(2.0**slow)
        attention = 1 + correction * (yarn_attention_factor(self.scale) - 1) if self.kind == "yarn" else 1.0
        theta = self._geometry.rope_theta
        return YarnNumbers(
            factor=_rounded(max(math.exp(height * self._log_scale), 1.0)),
            beta_fast=_rounded(max(2.0**fast, NARROWEST * beta_slow)),
            beta_slow=beta_slow,
            attention_factor=_rounded(attention if self._attention_factor is None else self._attention_factor),
            rope_theta=_rounded(theta * math.exp(base * self._log_ntk)) if base else theta,
        )

    def numbers(self, factors: Factors) -> YarnNumbers | None:
        """Return the numbers of a candidate that :meth:`factors` has given; None of others."""
        return self._numbers.get(factors)

    def nearest(self, factors: Factors) -> Vector:
        """Return the point whose rescale factors are nearest, by the mean square of the differences of log lambda."""
        wanted = np.log(np.maximum(factors.rescale_factors, 1e-9))
        correction = (factors.attention_factor - 1) / max(yarn_attention_factor(self.scale) - 1, 1e-9)
        grid = []
        for point in self._grid():
            point[3] = min(max(correction, 0.0), WARMEST)
            free = np.array(point)[self._free]
            grid.append((self._distance(free, wanted), free))
        grid.sort(key=itemgetter(0))
        refined = [self._refined(point, distance, wanted) for distance, point in grid[:REFINED]]
        return min(refined, key=itemgetter(0))[1]

    def _refined(self, best: Vector, least: float, wanted: Vector) -> tuple[float, Vector]:
        """Coordinate by coordinate, in smaller and smaller steps."""
        step = self.widths.copy()
        for _ in range(8):
            for place, sign in itertools.product(range(len(step)), (-1.0, 1.0)):
                while True:
                    moved = best.copy()
                    moved[place] += sign * step[place]
                    moved = np.clip(moved, *self.bounds.T)
                    distance = self._distance(moved, wanted)
                    if distance >= least - 1e-12:
                        break
                    best, least = moved, distance
            step *= 0.6
        return least, best

    def as_json(self, factors: Factors) -> dict[str, Any] | None:
        """The numbers of a candidate, with the kind of form."""
        numbers = self.numbers(factors)
        return None if numbers is None else {"kind": self.kind, **asdict(numbers)}

    def _grid(self) -> list[list[float]]:
        heights, bases = (0.0, 0.5, 0.75, 1.0, 1.2), (0.0, 0.3, 0.6, 1.0, 1.3)
        if self.kind == "base":
            return [[0.0, 0.0, 0.0, 0.0, base] for base in (*bases, 1.6, 2.0)]
        ramps = [(fast, slow) for fast in (1.0, 2.0, 3.0, 5.0, 7.0) for slow in (-2.0, -1.0, 0.0, 1.5) if fast > slow]
        return [[height, *ramp, 1.0, base] for height in heights for ramp in ramps for base in bases]

    def _distance(self, point: Vector, wanted: Vector) -> float:
        logs = np.log(yarn_of_numbers(self._geometry, **asdict(self._numbers_at(point))).rescale_factors)
        return float(np.mean((logs - wanted) ** 2))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
