"""From the summed loss of a recipe to the KL divergence expected of its file.

    KLD = floor + k L / (1 + k L / m)

Sums of small losses are KL divergences (nats per token) up to a factor k near 1; large ones saturate towards m, since
predictions cannot get worse than those of a model that knows only the frequency of words; and whatever an engine adds
beyond the losses, such as more rounding of activations than expected, is a floor that no recipe removes. The three
parameters are fitted to evaluated files, starting from a prior (`_EXPECTED`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCATTER", "Link", "Point", "Prediction", "fit_link"]

Doubles = NDArray[np.float64]

# Logarithms of k, m and floor before any file was evaluated, and their standard deviations: on prose-8m and
# SmolLM2-135M sums of measured losses were 0.8 to 1.3 of the divergence, those by reach of these and a Qwen of 1.5 B
# weights 0.6 to 1.1, and Q8_0 files diverged by 2e-4 to 4e-3
_EXPECTED = np.log([1.0, 2.0, 1e-4])
_SPREAD = np.array([0.3, 0.7, 2.0])
SCATTER = 0.08
"""Standard deviation of the logarithm of KL divergences, of files about the curve."""
_STEPS = 50


class Point(NamedTuple):
    """One evaluated file: the sum of its tensors' losses, and its measured KL divergence with standard error."""

    loss: float
    kld: float
    stderr: float


class Prediction(NamedTuple):
    """An expected KL divergence (nats per token) and an interval that should hold two times in three."""

    kld: float
    low: float
    high: float


class Link(NamedTuple):
    """The fitted curve: logarithms of k, m and floor, f64[3], and their covariance, f64[3, 3]. `points` is the number
    of files that it was fitted to."""

    parameters: Doubles
    covariance: Doubles
    points: int

    def predict(self, loss: float) -> Prediction:
        """Return the KL divergence expected of a recipe with this loss."""
        losses = np.array([loss])
        centre = float(np.log(_curve(self.parameters, losses))[0])
        slope = _slopes(self.parameters, losses)[0]
        deviation = math.sqrt(float(slope @ self.covariance @ slope) + SCATTER**2)
        return Prediction(math.exp(centre), math.exp(centre - deviation), math.exp(centre + deviation))

    def loss_at(self, kld: float) -> float | None:
        """Return the loss of a recipe that is expected to have this KL divergence: the inverse of `predict`. None below
        the floor, where no loss is; infinite beyond what large losses come to."""
        k, most, floor = (float(value) for value in np.exp(self.parameters))
        above = kld - floor
        if above < 0:
            return None
        return above / (k * (1 - above / most)) if above < most else math.inf


def fit_link(points: Sequence[Point]) -> Link:
    """Fit the curve to the points: maximum a posteriori, by Gauss-Newton on logarithms, halving steps that do not
    help."""
    usable = [point for point in points if point.kld > 0 and point.loss > 0]
    losses = np.array([point.loss for point in usable], np.float64)
    klds = np.array([point.kld for point in usable], np.float64)
    noise = np.hypot(SCATTER, np.array([point.stderr for point in usable], np.float64) / klds)

    def misfit(parameters: Doubles) -> Doubles:
        off = (np.log(_curve(parameters, losses)) - np.log(klds)) / noise
        return np.concatenate([off, (parameters - _EXPECTED) / _SPREAD])

    def jacobian(parameters: Doubles) -> Doubles:
        return np.concatenate([_slopes(parameters, losses) / noise[:, None], np.diag(1 / _SPREAD)])

    parameters = _EXPECTED.copy()
    for _ in range(_STEPS):
        off, slopes = misfit(parameters), jacobian(parameters)
        step = np.linalg.lstsq(slopes, -off, rcond=None)[0]
        while np.abs(step).max() > 1e-9 and (misfit(parameters + step) ** 2).sum() > (off**2).sum():
            step = step / 2
        parameters = parameters + step
        if np.abs(step).max() < 1e-9:
            break
    slopes = jacobian(parameters)
    return Link(parameters, np.asarray(np.linalg.inv(slopes.T @ slopes), np.float64), len(usable))


def _curve(parameters: Doubles, losses: Doubles) -> Doubles:
    k, most, floor = np.exp(parameters)
    return np.asarray(floor + k * losses / (1 + k * losses / most), np.float64)


def _slopes(parameters: Doubles, losses: Doubles) -> Doubles:
    """Return the derivatives of the curve's logarithm by the three parameters, f64[n, 3]."""
    k, most, floor = np.exp(parameters)
    bent = 1 + k * losses / most
    by_k, by_most = k * losses / bent**2, (k * losses / bent) ** 2 / most
    slopes = np.stack([by_k, by_most, np.full_like(losses, floor)], axis=1)
    return np.asarray(slopes / _curve(parameters, losses)[:, None], np.float64)
