"""The error of rows in a format, and its estimate from a sample: the design's `err`, component by component."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format
from planner.formats.ggml.refine import pair_errors
from planner.gguf.refinement import round_trip_refined
from planner.measure.moments import Moments
from planner.measure.survey import Survey
from planner.sensitivity import ErrorParts

__all__ = [
    "METRIC_VERSION",
    "Estimate",
    "Spread",
    "Tally",
    "corrected",
    "errors_of",
    "estimate",
    "relative",
    "rounded",
    "row_errors",
    "standard_error",
]

METRIC_VERSION = 3  # part of every measurement's key: raise it when a number would change

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
    return round_trip_refined(fmt, rows, weights, moments.pairs, matrix)


def errors_of(survey: Survey, matrix: int, difference: Doubles) -> Doubles:
    """Return the expected squared output error of rows of one matrix that are off by `difference`, float64 [r, n],
    which is used up; returns float64 [3, r] as `row_errors` does."""
    moments, massive = survey.moments, survey.massive[matrix]
    errors = np.zeros((3, len(difference)))
    if survey.looked_up:
        errors[2] = np.einsum("ij,ij->i", difference, difference)
    elif massive.any():
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


class Tally:
    """Errors of the rows of one tensor that were measured in one format; `energy` and `massive` are the tensor's total
    energies."""

    def __init__(self, energy: float, massive: float) -> None:
        self._scale = np.array([[energy], [energy], [massive]])
        self._rows = np.zeros(0, dtype=np.int64)
        self._errors = np.zeros((3, 0))

    def add(self, rows: NDArray[np.int64], errors: Doubles) -> None:
        """Add rows, int64 [k], none of them there yet, and their errors, float64 [3, k], usage included."""
        rows, errors = np.concatenate([self._rows, rows]), np.concatenate([self._errors, errors], axis=1)
        order = np.argsort(rows)
        self._rows, self._errors = rows[order], errors[:, order]

    def draws(self, rows: NDArray[np.int64], weights: Doubles) -> Doubles:
        """Return what each draw says the relative error is, float64 [3, n]: the errors of `rows`, int64 [n], which
        were added, times `weights`."""
        errors: Doubles = self._errors[:, np.searchsorted(self._rows, rows)] * weights
        shares: Doubles = np.divide(errors, self._scale, out=(errors > 0).astype(np.float64), where=self._scale > 0)
        return shares

    def exact(self) -> Estimate:
        """Return the error, if all rows were added."""
        parts = map(relative, self._errors.sum(axis=1).tolist(), self._scale[:, 0].tolist())
        return Estimate(ErrorParts(*parts), stderr=0.0, stderr_massive=0.0)


def corrected(draws: Doubles, known: Doubles) -> Doubles:
    """Return draws, float64 [m, n], without what is due to rows that stand for more or less than they should: `known`,
    float64 [k, n], is what the same draws say of k sums that are known to be 1.

    The mean of what is returned is the regression estimator, draws are taken with a mixture of probabilities, and the
    mixed are what is known: so it is about as good as if draws had been taken with the best mixture for each format
    (Owen and Zhou, "Safe and effective importance sampling", JASA 95, 2000).
    """
    luck = known - 1
    apart = luck - luck.mean(axis=1, keepdims=True)
    # A mixture's parts depend on each other; what hardly scatters explains nothing
    gram = np.einsum("in,jn->ij", apart, apart) + 1e-6 * draws.shape[1] * np.eye(len(luck))
    slopes = np.linalg.solve(gram, np.einsum("in,mn->im", apart, draws))
    rest: Doubles = draws - np.einsum("im,in->mn", slopes, luck)
    return rest


@dataclass(frozen=True)
class Spread:
    """How far the draws of one format lie from their mean: `variance` and third moment `skew`, as shares of the mean
    and of its cube."""

    variance: float
    skew: float

    @classmethod
    def of(cls, draws: Doubles, free: int) -> Spread:
        """Return the spread of draws, float64 [n], of which `free` are independent of all that was estimated."""
        mean = float(draws.mean())
        if mean <= 0:  # nothing at all, or corrected beyond what the draws can tell
            return cls(math.inf if draws.any() else 0.0, 0.0)
        apart = draws / mean - 1
        return cls(float((apart**2).sum() / free), float((apart**3).mean()))

    @property
    def skewness(self) -> float:
        """The third moment in standard deviations."""
        return abs(self.skew) / self.variance**1.5 if self.variance > 0 else 0.0


def estimate(draws: Doubles, spreads: Sequence[tuple[Spread, Spread]], free: int, share: float) -> Estimate:
    """Return the mean over draws, float64 [3, n], of which `free` are independent of all that was estimated, and which
    took a `share` of all rows. `spreads` are those, of the total and of the massive part, of all formats that were
    measured on these rows, this one's first."""
    var, mean, heavy = np.maximum(draws.mean(axis=1), 0.0).tolist()
    total, massive = (standard_error(each, draws.shape[1], free, share) for each in zip(*spreads, strict=True))
    return Estimate(ErrorParts(var, mean, heavy), stderr=(var + mean) * total, stderr_massive=heavy * massive)


def standard_error(spreads: Sequence[Spread], count: int, free: int, share: float) -> float:
    """Return the standard error of the mean of `count` draws as a share of it: a third of the half width of a 99.73 %
    interval.

    Formats spread their errors over rows alike. So no format is taken to spread less than the median of them, whatever
    its own draws say: among few draws the heavy ones can be missing, and drawing ends when draws seem to be enough.

    Small samples: Student's t by its Cornish-Fisher expansion at z = 3. Skew: the second-order term
    |γ| (2 z² + 1) / (6 √n) of the quantile (Johnson, "Modified t tests and confidence intervals for asymmetrical
    populations", JASA 73, 1978); errors that are squares of single sums have much of it. Of the variance, what is left
    is the share of rows that were not drawn. Systematic draws are taken as independent, which errs to the safe side.
    """
    own = spreads[0]
    usual = Spread(median(each.variance for each in spreads), median(each.skew for each in spreads))
    deviation = math.sqrt(max(own.variance, usual.variance))
    skewness = max(own.skewness, usual.skewness)
    z, root = 3.0, math.sqrt(count)
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return deviation / root * (student + skewness * (2 * z**2 + 1) / (6 * root)) / z * math.sqrt(1 - share)
