"""Which tensors of a model are refined when it is quantized, and the covariances that their rows share."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format, dequantize_rows, quantize_rows
from planner.formats.ggml.refine import REFINEMENT_VERSION, SHRINKAGE, Metric, can_refine, refine_rows
from planner.formats.registry import round_trip
from planner.gguf.covariance import Covariances
from planner.gguf.imatrix import Imatrix
from planner.gguf.reader import Tensor

__all__ = ["LatestMetric", "Refinement", "SharedMetric", "least_weights", "left_in", "round_trip_refined"]

Floats = NDArray[np.float32]

_ROWS = 128  # that are refined together, at least: for fewer, a large covariance would be read too often


@dataclass(frozen=True)
class Refinement:
    """Codes are refined against `covariances`, shrunk by `shrinkage`."""

    covariances: Covariances
    shrinkage: float = SHRINKAGE

    def applies(self, tensor: Tensor, fmt: Format) -> bool:
        """Return whether the codes of a tensor in a format are refined. Raises CovarianceError for another model's."""
        return can_refine(fmt) and self.covariances.covers(tensor)

    def metric(self, tensor: Tensor, matrix: int) -> Metric:
        """Read the metric of one of a tensor's matrices. Raises CovarianceError for values that are none."""
        found = self.covariances.matrix(tensor, matrix)
        assert found is not None, f"{tensor.name} is refined without covariances"
        return Metric.of(found, self.shrinkage)

    @functools.cached_property
    def key(self) -> tuple[str, ...]:
        """What refined codes depend on besides what unrefined ones do."""
        return "covariance", self.covariances.digest, repr(self.shrinkage), str(REFINEMENT_VERSION)


def least_weights(tensor: Tensor) -> int:
    """Return how many weights of a tensor that is refined are converted together at least."""
    return _ROWS * tensor.row_length


def left_in(
    fmt: Format, tensor: Tensor, imatrix: Imatrix | None, refinement: Refinement | None
) -> Callable[[Floats, int], Floats]:
    """Return what tells what is left in a format of rows, f32[r, n], of one of a tensor's matrices: by the imatrix, and
    of refined codes where the refinement applies. Raises ImatrixError and CovarianceError for another model's."""
    values = None if imatrix is None else imatrix.weights(tensor)
    metric = LatestMetric(refinement, tensor) if refinement is not None and refinement.applies(tensor, fmt) else None
    return lambda rows, matrix: round_trip_refined(
        fmt, rows, None if values is None else values[matrix], metric, matrix
    )


def round_trip_refined(
    fmt: Format,
    rows: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    metric: LatestMetric | None,
    matrix: int,
) -> NDArray[np.float32]:
    """Return what is left of rows of one matrix, f32[r, n], in a format: of refined codes, where there is a metric and
    the format has codes to refine. Raises KernelError, and CovarianceError for values that are none."""
    if metric is None or not can_refine(fmt):
        return round_trip(fmt, rows, weights)
    data = refine_rows(fmt, rows, quantize_rows(fmt, rows, weights), metric.of(matrix))
    return dequantize_rows(fmt, data, rows.shape[1])


class LatestMetric:
    """The metrics of a tensor's matrices, of which the one last asked for is kept until `release`."""

    def __init__(self, refinement: Refinement, tensor: Tensor) -> None:
        self._refinement, self._tensor = refinement, tensor
        self._latest: tuple[int, Metric] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled without what it keeps."""
        return LatestMetric, (self._refinement, self._tensor)

    def of(self, matrix: int) -> Metric:
        """Return the metric of a matrix. Raises CovarianceError for values that are none."""
        with self._lock:
            latest = self._latest
            if latest is None or latest[0] != matrix:
                self._latest = None  # so that there are never two
                latest = self._latest = matrix, self._refinement.metric(self._tensor, matrix)
            return latest[1]

    def release(self) -> None:
        """Let go of the matrix: it may take hundreds of megabytes."""
        with self._lock:
            self._latest = None


class SharedMetric:
    """The metric of one of a tensor's matrices: made when first asked for, and let go with the last of `users` chunks
    of rows. So there are at most as many as threads, and of large ones, which many chunks share, one or two."""

    def __init__(self, refinement: Refinement, tensor: Tensor, matrix: int, users: int) -> None:
        self._from = refinement, tensor, matrix
        self._users = users
        self._metric: Metric | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as what it is of: all who have to do with the same, in another process, get the same."""
        return _in_common, self._from

    def get(self) -> Metric:
        """Return the metric. Raises CovarianceError for values that are none."""
        with self._lock:
            if self._metric is None:
                refinement, tensor, matrix = self._from
                self._metric = refinement.metric(tensor, matrix)
            return self._metric

    def done(self) -> None:
        """Say that a chunk has no more need of it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._metric = None


_together: weakref.WeakValueDictionary[tuple[object, ...], SharedMetric] = weakref.WeakValueDictionary()
_meeting = threading.Lock()


def _in_common(refinement: Refinement, tensor: Tensor, matrix: int) -> SharedMetric:
    """Return the metric that others in this process work with, if they do: a large one takes a gigabyte. It is let go
    with the last of them."""
    key = refinement.covariances, refinement.shrinkage, tensor.name, matrix
    with _meeting:
        found = _together.get(key)
        if found is None:
            found = _together[key] = SharedMetric(refinement, tensor, matrix, users=0)
        return found
