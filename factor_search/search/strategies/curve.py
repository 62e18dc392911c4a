"""Describes rescale factors by a few numbers: log lambda as a curve through knots over the rotary pairs."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Converts between candidates and short vectors.

    The first numbers of a vector are log lambda at knots placed evenly over the pairs and joined by straight lines. The
    space snaps the curve to its grid and makes it non-decreasing. Where the space has more than one choice, the number
    of initial tokens and the attention factor follow, each as a share (0 to 1) of the way through its choices.
    """

    space: SearchSpace
    knots: int
    """Number of knots; a model with fewer pairs has one knot at each pair."""

    @property
    def shape_size(self) -> int:
        """Return how many numbers of a vector are knots."""
        return min(self.knots, self.space.pairs)

    @property
    def bounds(self) -> Vector:
        """Return the lowest and highest value of each number: shape (size, 2)."""
        highest = math.log(1 + self.space.step * self.space.top_level)
        return np.array([[0.0, highest]] * self.shape_size + [[0.0, 1.0]] * len(self._choices))

    def vector(self, factors: Factors) -> Vector:
        """Return the vector whose curve is closest to a candidate, by least squares in log lambda."""
        wanted = np.log(factors.rescale_factors)
        shape, *_ = np.linalg.lstsq(self._basis(), wanted, rcond=None)
        genome = self.space.project(factors)
        shares = {"initial": genome.initial_tokens, "attention": genome.attention}
        rest = [shares[name] / (count - 1) for name, count in self._choices.items()]
        low, high = self.bounds.T
        return np.asarray(np.clip([*shape, *rest], low, high))

    def factors(self, vector: Vector) -> Factors:
        """Return the candidate of a vector; every finite vector has one."""
        size = self.shape_size
        low, high = self.bounds.T
        inside = np.clip(vector, low, high)
        logs = self._basis() @ inside[:size]
        picked = {
            name: round(share * (count - 1))
            for (name, count), share in zip(self._choices.items(), inside[size:].tolist(), strict=True)
        }
        return self.space.factors(
            self.space.project(
                Factors.of(
                    np.exp(logs).tolist(),
                    self.space.initial_tokens[picked.get("initial", 0)],
                    self.space.attention_factors[picked.get("attention", 0)],
                )
            )
        )

    @property
    def _choices(self) -> dict[str, int]:
        counts = {"initial": len(self.space.initial_tokens), "attention": len(self.space.attention_factors)}
        return {name: count for name, count in counts.items() if count > 1}

    def _basis(self) -> Vector:
        """Return the weight of each knot at each pair: shape (pairs, knots)."""
        places = np.linspace(0, self.space.pairs - 1, self.shape_size)
        pairs = np.arange(self.space.pairs)
        return np.stack([np.interp(pairs, places, unit) for unit in np.eye(self.shape_size)], axis=1)
