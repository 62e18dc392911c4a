"""Bayesian optimisation: a Gaussian process predicts losses, and expected improvement proposes points (1807.02811)."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
LENGTHS = np.geomspace(0.2, 4.0, 9)
NOISES = (1e-4, 1e-3, 1e-2, 5e-2, 2e-1)
"""Noise as a share of the variance. The loss on a few documents is rugged on a small scale."""
SPREAD, NEAR = 500, 160
"""Number of points to choose from: spread over the region, and close to its centre."""
_erf = np.vectorize(math.erf, otypes=[float])


class GaussianProcess:
    """A Gaussian process with a Matern 5/2 kernel; length scale and noise maximise the posterior over a grid."""

    def __init__(self, points: Matrix, losses: Vector, fit: tuple[float, float] | None = None) -> None:
        """Condition the process on known losses.

        Args:
            points: shape (n, dimensions), scaled so that a step of 1 has about the same effect in each dimension.
            losses: shape (n,), nats per token.
            fit: length scale and noise, if they are known; None fits them.
        """
        self._points = points
        self._mean = float(np.median(losses))
        self._scale = max(float(losses.std()), 1e-9)
        targets = (losses - self._mean) / self._scale
        grid = [fit] if fit is not None else [(float(length), noise) for length in LENGTHS for noise in NOISES]
        best = -math.inf
        for length, noise in grid:
            covariance = _matern(points, points, length) + noise * np.eye(len(points))
            lower = np.linalg.cholesky(covariance)
            weights = np.linalg.solve(lower.T, np.linalg.solve(lower, targets))
            variance = max(float(targets @ weights) / len(targets), 1e-9)
            likelihood = -0.5 * len(targets) * math.log(variance) - float(np.log(np.diag(lower)).sum())
            prior = -0.5 * (math.log(length) / 0.7) ** 2 - 0.5 * (math.log(noise / 1e-2) / 2.5) ** 2
            if likelihood + prior > best:
                best = likelihood + prior
                self.fit = (length, noise)
                self._lower, self._weights, self._variance = lower, weights, variance

    def predict(self, points: Matrix) -> tuple[Vector, Vector]:
        """Return the expected loss and its standard deviation at each point, both of shape (n,)."""
        covariance = _matern(points, self._points, self.fit[0])
        reduced = np.linalg.solve(self._lower, covariance.T)
        variance = np.maximum(self._variance * (1 - (reduced**2).sum(axis=0)), 1e-12)
        return self._mean + self._scale * (covariance @ self._weights), self._scale * np.sqrt(variance)


def propose(
    points: Matrix,
    losses: Sequence[float],
    *,
    widths: Vector,
    bounds: Matrix,
    radius: float,
    count: int,
    rng: np.random.Generator,
) -> list[Vector]:
    """Propose points with the highest expected improvement within a trust region around the best expected point.

    Each point is chosen as if the points before it had the expected loss. No proposed point is known already.

    Args:
        points: known points, shape (n, dimensions).
        losses: losses at these points, nats per token.
        widths: unit of distance in each dimension, shape (dimensions,).
        bounds: lowest and highest value of each dimension, shape (dimensions, 2).
        radius: radius of the trust region, in widths.
        count: number of points to propose.
        rng: draws the points to choose from.
    """
    known, guesses, proposed = points / widths, list(losses), []
    low, high = bounds.T / widths
    fit = None
    dimensions = known.shape[1]
    for _ in range(count):
        process = GaussianProcess(known, np.asarray(guesses), fit)
        expected, _ = process.predict(known)
        if fit is None:
            fit, centre, lowest = process.fit, known[int(expected.argmin())], known[int(np.argmin(guesses))]
        chosen = rng.random((SPREAD, dimensions)) < max(0.35, 2 / dimensions)
        candidates = np.concatenate(
            [
                centre + radius * rng.uniform(-1, 1, (SPREAD, dimensions)) * chosen,
                centre + 0.3 * radius * rng.normal(size=(NEAR, dimensions)),
                lowest + 0.3 * radius * rng.normal(size=(NEAR, dimensions)),
            ]
        ).clip(low, high)
        mean, deviation = process.predict(candidates)
        gain = (float(expected.min()) - mean) / deviation
        density = np.exp(-gain * gain / 2) / math.sqrt(2 * math.pi)
        improvement = deviation * (gain * 0.5 * (1 + _erf(gain / math.sqrt(2))) + density)
        improvement[(candidates[:, None] == known[None]).all(axis=-1).any(axis=-1)] = -math.inf
        index = int(improvement.argmax())
        proposed.append(candidates[index] * widths)
        known = np.concatenate([known, candidates[index : index + 1]])
        guesses.append(float(mean[index]))
    return proposed


def _matern(first: Matrix, second: Matrix, length: float) -> Matrix:
    squared = (((first[:, None] - second[None]) / length) ** 2).sum(axis=-1)
    distance = np.sqrt(5 * np.maximum(squared, 1e-16))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))
