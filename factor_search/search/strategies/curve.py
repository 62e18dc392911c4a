"""Few numbers for a whole vector: log lambda as a curve over the rotary pairs, drawn through knots."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factor_search.factors import Factors
from factor_search.search.space import SearchSpace

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The map between candidates and short vectors.

    A vector is log lambda at knots placed evenly over the pairs, joined by straight lines, which the space snaps to its
    grid and makes non-decreasing; then, where the space has a choice, the number of initial tokens and the attention
    factor, each as a share of the way through its choices.
    """

    space: SearchSpace
    knots: int
    """Wanted; a model with fewer pairs has a knot at each."""

    @property
    def shape_size(self) -> int:
        """How many numbers of a vector are knots."""
        return min(self.knots, self.space.pairs)

    @property
    def bounds(self) -> Vector:
        """Lowest and highest value of each number; shape (size, 2)."""
        highest = math.log(1 + self.space.step * self.space.top_level)
        return np.array([[0.0, highest]] * self.shape_size + [[0.0, 1.0]] * len(self._choices))

    def vector(self, factors: Factors) -> Vector:
        """The numbers whose curve is closest to a candidate, by least squares in log lambda."""
        wanted = np.log(factors.rescale_factors)
        shape, *_ = np.linalg.lstsq(self._basis(), wanted, rcond=None)
        genome = self.space.project(factors)
        shares = {"initial": genome.initial_tokens, "attention": genome.attention}
        rest = [shares[name] / (count - 1) for name, count in self._choices.items()]
        low, high = self.bounds.T
        return np.asarray(np.clip([*shape, *rest], low, high))

    def factors(self, vector: Vector) -> Factors:
        """The candidate in the space that a vector stands for; any finite vector stands for one."""
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
        """Each knot's weight at each pair; shape (pairs, knots)."""
        places = np.linspace(0, self.space.pairs - 1, self.shape_size)
        pairs = np.arange(self.space.pairs)
        return np.stack([np.interp(pairs, places, unit) for unit in np.eye(self.shape_size)], axis=1)
