"""The error of rows in a format, and its estimate from a sample: the design's `err`, component by component."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format, dequantize_rows, quantize_rows
from planner.formats.ggml.refine import can_refine, pair_errors, refine_rows
from planner.formats.registry import round_trip
from planner.measure.moments import Moments
from planner.measure.survey import Survey
from planner.sensitivity import ErrorParts

__all__ = ["METRIC_VERSION", "Estimate", "Tally", "errors_of", "relative", "rounded", "row_errors"]

METRIC_VERSION = 2  # part of every measurement's key: raise it when a number would change

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """The relative error of a tensor in a format; `stderr` is the standard error of its total, `stderr_massive` that of
    its massive part."""

    error: ErrorParts
    stderr: float
    stderr_massive: float


def row_errors(survey: Survey, fmt: Format, matrix: int, rows: NDArray[np.float32]) -> Doubles:
    """Return the expected squared output error of rows of one matrix after a round trip through a format.

    `rows` is float32 [r, n]; returns float64 [3, r]: varying part, mean part, massive channels.
    """
    return errors_of(survey, matrix, rounded(survey, fmt, matrix, rows).astype(np.float64) - rows)


def rounded(survey: Survey, fmt: Format, matrix: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what is left of rows of one matrix, f32[r, n], in a format: of refined codes, where covariances are known.
    Raises KernelError."""
    moments = survey.moments
    weights = None if moments.weights is None else moments.weights[matrix]
    if moments.pairs is None or not can_refine(fmt):
        return round_trip(fmt, rows, weights)
    data = refine_rows(fmt, rows, quantize_rows(fmt, rows, weights), moments.pairs.of(matrix))
    return dequantize_rows(fmt, data, rows.shape[1])


def errors_of(survey: Survey, matrix: int, difference: Doubles) -> Doubles:
    """Return the expected squared output error of rows of one matrix that are off by `difference`, float64 [r, n],
    which is used up; returns float64 [3, r] as `row_errors` does."""
    moments, massive = survey.moments, survey.massive[matrix]
    errors = np.zeros((3, len(difference)))
    if massive.any():
        few = difference[:, massive]
        errors[2] = (few * few) @ moments.variance[matrix, massive] + (few @ moments.mean[matrix, massive]) ** 2
        difference[:, massive] = 0.0
    if moments.has_mean:
        errors[1] = np.einsum("ij,j->i", difference, moments.mean[matrix]) ** 2
    together = None if moments.pairs is None else _of_pairs(moments, matrix, difference) - errors[1]
    np.multiply(difference, difference, out=difference)
    if together is None:
        errors[0] = np.einsum("ij,j->i", difference, moments.variance[matrix])
    else:
        errors[0] = np.maximum(np.einsum("ij,j->i", difference, moments.second[matrix]) + together, 0.0)
    return errors


def _of_pairs(moments: Moments, matrix: int, difference: Doubles) -> Doubles:
    """Return what pairs of channels add to the error of rows, Σ_{i≠j} d_i H_ij d_j, f64[r], for differences
    f64[r, n].

    Correlations are as they were collected: shrunk ones, as codes are refined against, would make refined codes seem
    worth less than they are (docs/rounding.md). Mean squares are those that errors are weighted by.
    """
    assert moments.pairs is not None
    metric = moments.pairs.of(matrix)
    own = np.diag(metric.matrix).astype(np.float64)
    scale = np.sqrt(np.divide(moments.second[matrix], own, out=np.zeros_like(own), where=own > 0))
    return pair_errors((difference * scale).astype(np.float32), metric)


def relative(error: float, energy: float) -> float:
    """Return an error as a share of the energy. Where weights are so small that their squares vanish, any error counts
    as all of it."""
    return error / energy if energy > 0 else float(error > 0)


@dataclass
class Tally:
    """Draws of one tensor in one format, as they come in; `energy` and `massive` are its total energies."""

    energy: float
    massive: float
    samples: list[Doubles] = field(default_factory=list)
    exact: Estimate | None = None

    def add(self, errors: Doubles, weights: Doubles, draws: NDArray[np.int64]) -> None:
        """Add drawn rows: `errors` float64 [3, k] of the rows, usage included; `weights` 1 / probability;
        `draws` how often."""
        self.samples.append(np.repeat(errors * weights, draws, axis=1))

    def settle(self, errors: Doubles) -> None:
        """Replace the sample by the errors of all rows, float64 [3, rows]."""
        var, mean, massive = errors.sum(axis=1).tolist()
        energy, heavy = self.energy, self.massive
        parts = ErrorParts(relative(var, energy), relative(mean, energy), relative(massive, heavy))
        self.exact = Estimate(parts, stderr=0.0, stderr_massive=0.0)

    def estimate(self) -> Estimate:
        """Return the mean over draws, with the standard error of systematic draws taken as independent (which errs to
        the safe side).

        It is widened so that three of them hold with the probability of three standard deviations, although draws are
        few and skewed: see `_standard_error`.
        """
        if self.exact is not None:
            return self.exact
        draws = np.concatenate(self.samples, axis=1)
        scale = np.array([[self.energy], [self.energy], [self.massive]])
        draws = np.divide(draws, scale, out=(draws > 0).astype(np.float64), where=scale > 0)
        var, mean, massive = draws.mean(axis=1)
        return Estimate(
            ErrorParts(float(var), float(mean), float(massive)),
            stderr=_standard_error(draws[0] + draws[1]),
            stderr_massive=_standard_error(draws[2]),
        )


def _standard_error(draws: Doubles) -> float:
    """Return the standard error of the mean of `draws`, float64 [n], as a third of the half width of a 99.73 %
    interval.

    Small samples: Student's t by its Cornish-Fisher expansion at z = 3. Skew: the second-order term
    |γ| (2 z² + 1) / (6 √n) of the quantile (Johnson, "Modified t tests and confidence intervals for asymmetrical
    populations", JASA 73, 1978); errors that are squares of single sums have much of it.
    """
    z, count = 3.0, len(draws)
    centred = draws - draws.mean()
    deviation = float(np.sqrt((centred**2).sum() / (count - 1)))
    if deviation == 0:
        return 0.0
    freedom = count - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    skew = abs(float((centred**3).mean())) / deviation**3
    root = math.sqrt(count)
    return deviation / root * (student + skew * (2 * z**2 + 1) / (6 * root)) / z
