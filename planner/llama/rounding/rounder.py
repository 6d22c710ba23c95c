"""Round tensors for an input: corrected for what it lacks, and refined against its covariance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format, dequantize_rows
from planner.formats.ggml.refine import SHRINKAGE, Metric, can_refine, refine_rows
from planner.gguf import Imatrix, Model
from planner.gguf.conversion import checked_rows
from planner.gguf.correction import Correction, Moments
from planner.gguf.reader import Tensor
from planner.gguf.refinement import Refinement, least_weights, left_in
from planner.gguf.rounded import Rounded
from planner.llama.collect.activations import not_finite
from planner.llama.workers import Workers

__all__ = ["DepthRequest", "Fit", "Rounder"]

Floats = NDArray[np.float32]

_WEIGHTS = 1 << 18  # that are rounded together at least


@dataclass(frozen=True)
class DepthRequest:
    """The request: `formats` of the tensors that change; at most `chunks` windows of each text are read. What cannot be
    rounded along the depth has the `imatrix`, and the `refinement` if it applies."""

    model: Model
    formats: Mapping[str, Format]
    imatrix: Imatrix | None
    refinement: Refinement | None
    texts: tuple[Path, ...]
    chunks: int | None = None
    shrinkage: float = SHRINKAGE
    threads: int | None = None

    def left_of(self, tensor: Tensor) -> Callable[[Floats, int], Floats]:
        """Return what tells what is left of some rows, f32[r, n], of one of the matrices of a tensor that is not
        rounded along the depth."""
        fmt = self.formats.get(tensor.name)
        return (lambda rows, matrix: rows) if fmt is None else left_in(fmt, tensor, self.imatrix, self.refinement)


@dataclass(frozen=True)
class Fit:
    """What tensors that read an input are rounded by: their correction, the mean squares of the input's channels,
    f32[n], and its covariance."""

    correction: Correction
    squares: Floats
    metric: Metric


class Rounder:
    """Rounds the request's tensors, and puts them into `rounded`."""

    def __init__(self, request: DepthRequest, rounded: Rounded) -> None:
        self.request, self._rounded = request, rounded

    def chosen(self, name: str) -> bool:
        """Return whether a tensor is to be in a format whose codes can be refined."""
        fmt = self.request.formats.get(name)
        return fmt is not None and can_refine(fmt)

    def fit(self, moments: Moments, name: str) -> Fit:
        """Return what the tensors that read an input are rounded by; `name` is one of them. Raises ModelError for NaN
        and infinity."""
        covariance = moments.covariance()
        if not np.isfinite(covariance).all():
            raise not_finite(name)
        squares = np.diag(covariance).copy()
        return Fit(moments.correction(), squares, Metric.of(covariance, self.request.shrinkage))

    def round(self, name: str, own: str, fit: Fit, workers: Workers, write: Callable[[int, Floats], None]) -> None:
        """Round a tensor, which the correction knows as `own`; `write` is given what is left of it, f32[r, n], from
        some row on. Raises ModelError for weights that the format cannot hold, and OutputError."""
        model, fmt = self.request.model, self.request.formats[name]
        tensor = model[name]

        def one(piece: tuple[int, int, int]) -> NDArray[np.uint8]:
            _, start, stop = piece
            wanted = fit.correction.apply(own, start, model.rows(tensor, start, stop))
            data = refine_rows(fmt, wanted, checked_rows(name, fmt, wanted, fit.squares, start), fit.metric)
            write(start, dequantize_rows(fmt, data, tensor.row_length))
            model.release(tensor, start, stop)
            return data

        size = max(_WEIGHTS, least_weights(tensor))
        self._rounded.put(name, workers.map(one, tensor.slices(size)))
