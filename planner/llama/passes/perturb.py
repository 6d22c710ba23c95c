"""Weights of a loaded model, changed in the engine's memory by what formats do to them, and put back.

A tensor's rows are read from the file, quantized as `planner quantize` would, dequantized, and written over the
engine's in the type that they are stored in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format
from planner.gguf import Imatrix, Model
from planner.gguf import Tensor as FileTensor
from planner.gguf.refinement import Refinement
from planner.llama.passes.weights import WEIGHTS_AT_A_TIME, Weights, open_weights
from planner.measure import Survey, moments, survey_in_place
from planner.measure.metric import errors_of, relative, rounded
from planner.sensitivity import ErrorParts

__all__ = ["Perturber", "open_perturber"]


class Perturber(Weights):
    """Weights that are changed to learn what errors do. Made by `open_perturber`."""

    def __init__(self, found: Weights, imatrix: Imatrix | None, refinement: Refinement | None) -> None:
        super().__init__(found.engine, found.model, found.weights, found.out_of_reach)
        self._imatrix, self._refinement = imatrix, refinement
        self._surveys: dict[str, Survey] = {}

    def change(self, changes: Mapping[str, Format]) -> dict[str, ErrorParts]:
        """Put each of these tensors through its format, in memory; return its relative error over all its rows. Tensors
        changed before and not named stay changed."""
        return {name: self._change(self.model[name], fmt) for name, fmt in changes.items()}

    def _change(self, tensor: FileTensor, fmt: Format) -> ErrorParts:
        survey = self._survey(tensor)

        def one(part: tuple[int, int, int]) -> NDArray[np.float64]:
            matrix, start, stop = part
            rows = self.model.rows(tensor, start, stop)
            back = rounded(survey, fmt, matrix, rows)
            self.write(tensor.name, start, back)
            errors = errors_of(survey, matrix, back.astype(np.float64) - rows)
            return np.asarray(errors @ survey.worth(matrix, np.arange(start, stop)), np.float64)

        sums = np.sum(self.engine.workers.map(one, tensor.slices(WEIGHTS_AT_A_TIME)), axis=0)
        if survey.moments.pairs is not None:
            survey.moments.pairs.release()
        var, mean, massive = sums.tolist()
        bulk, heavy = survey.energy, survey.energy_massive
        return ErrorParts(relative(var, bulk), relative(mean, bulk), relative(massive, heavy))

    def _survey(self, tensor: FileTensor) -> Survey:
        if tensor.name not in self._surveys:
            known = moments(tensor, self._imatrix, self._refinement)
            self._surveys[tensor.name] = survey_in_place(self.model, tensor, known).slim()
        return self._surveys[tensor.name]


@contextlib.contextmanager
def open_perturber(
    path: Path, model: Model, imatrix: Imatrix | None, *, refinement: Refinement | None = None, context: int,
    threads: int | None, gpu_layers: int,
) -> Iterator[Perturber]:  # fmt: skip
    """Load a model so that its weights can be changed; on exit, even after an error, all are put back first. With a
    `refinement`, codes are refined. Raises what `open_weights` raises."""
    with open_weights(path, model, context=context, threads=threads, gpu_layers=gpu_layers) as found:
        result = Perturber(found, imatrix, refinement)
        try:
            yield result
        finally:
            result.restore()
