"""Which tensors of a model are refined when it is quantized, and the covariances that their rows share."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from planner.formats.ggml import Format
from planner.formats.ggml.refine import SHRINKAGE, Metric, can_refine
from planner.gguf.covariance import Covariances
from planner.gguf.reader import Tensor

__all__ = ["Refinement", "SharedMetric"]

_ROWS = 64  # that are refined together, at least: for fewer, a large covariance would be read too often


@dataclass(frozen=True, slots=True)
class Refinement:
    """Codes are refined against `covariances`, shrunk by `shrinkage`."""

    covariances: Covariances
    shrinkage: float = SHRINKAGE

    def applies(self, tensor: Tensor, fmt: Format) -> bool:
        """Return whether the codes of a tensor in a format are refined. Raises CovarianceError for another model's."""
        return can_refine(fmt) and self.covariances.covers(tensor)

    def least(self, tensor: Tensor) -> int:
        """Return how many weights are converted together at least."""
        return _ROWS * tensor.row_length


class SharedMetric:
    """The metric of one of a tensor's matrices: made when first asked for, and let go with the last of `users` chunks
    of rows. So there are at most as many as threads, and of large ones, which many chunks share, one or two."""

    def __init__(self, refinement: Refinement, tensor: Tensor, matrix: int, users: int) -> None:
        self._from = refinement, tensor, matrix
        self._users = users
        self._metric: Metric | None = None
        self._lock = threading.Lock()

    def get(self) -> Metric:
        """Return the metric. Raises CovarianceError for values that are none."""
        with self._lock:
            if self._metric is None:
                refinement, tensor, matrix = self._from
                found = refinement.covariances.matrix(tensor, matrix)
                assert found is not None, f"{tensor.name} is refined without covariances"
                self._metric = Metric.of(found, refinement.shrinkage)
            return self._metric

    def done(self) -> None:
        """Say that a chunk has no more need of it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._metric = None
