"""How much of every product is lost where activations are rounded to 8 bits, found out while a model reads a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.gguf import Model
from planner.gguf import Tensor as FileTensor
from planner.llama.activations import activations_of
from planner.llama.engine import Engine, Node
from planner.sensitivity import Rounding
from planner.sensitivity.rounding import COARSE, FINE

__all__ = ["measure_rounding"]

_F32 = 0  # enum ggml_type
_STEPS = 127  # of an activation's magnitude: quantize_row_q8_0 and quantize_row_q8_K of ggml-quants.c
_MOST_ROWS = 128  # of a product that are looked at: the error is the same for all of a text to a few percent
_WEIGHT_ROWS = 64  # of a matrix, for the energies of its columns
# Tokens with massive activations (arXiv 2402.17762: magnitudes of over 100 times the median) carry no text, and their
# errors would hide all others
_MASSIVE = 100.0**2


def measure_rounding(engine: Engine, model: Model, windows: NDArray[np.int32]) -> dict[str, Rounding]:
    """Errors of the model's tensors, by name, over windows of tokens i32[n, context]; the engine's observer is lent."""
    before, observer = engine.observer, _Rounder(model)
    engine.observer = observer
    try:
        for _ in engine.windows(windows, first=0):
            pass
    finally:
        engine.observer = before
    return observer.errors()


class _Rounder:
    """An observer of every product with a tensor of the model's."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._columns: dict[tuple[str, int], NDArray[np.float32]] = {}
        self._energies: dict[str, NDArray[np.float64]] = {}  # of the product, and of its errors: f64[3]

    def wants(self, node: Node) -> bool:
        if node.operation not in ("MUL_MAT", "MUL_MAT_ID"):
            return False
        weight, activations = node.sources[:2]
        return weight.name in self._model.by_name and activations.type == _F32

    def see(self, node: Node) -> None:
        tensor = self._model[node.sources[0].name]
        total = self._energies.setdefault(tensor.name, np.zeros(3))
        for group in activations_of(node):
            rows = group.rows[:: -(-len(group.rows) // _MOST_ROWS)]
            columns = self._column_energies(tensor, group.matrix)
            each = [np.square(rows) @ columns, *(_errors(rows, block) @ columns for block in (FINE, COARSE))]
            usual = each[0] <= _MASSIVE * np.median(each[0])
            total += [energies[usual].sum(dtype=np.float64) for energies in each]

    def errors(self) -> dict[str, Rounding]:
        """What was seen so far."""
        return {
            name: Rounding(fine / energy, coarse / energy)
            for name, (energy, fine, coarse) in self._energies.items()
            if energy > 0
        }

    def _column_energies(self, tensor: FileTensor, matrix: int) -> NDArray[np.float32]:
        """Sums of squares of a matrix's columns, f32[n], but for a factor: over some of its rows."""
        key = tensor.name, matrix
        if key not in self._columns:
            count = min(tensor.rows_per_matrix, _WEIGHT_ROWS)
            first = matrix * tensor.rows_per_matrix
            places = first + np.arange(count) * tensor.rows_per_matrix // count
            rows = np.concatenate([self._model.rows(tensor, row, row + 1) for row in places.tolist()])
            self._columns[key] = np.square(rows).sum(axis=0)
        return self._columns[key]


def _errors(rows: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Squares of the errors of activations f32[r, n] in blocks; what does not fill a block makes a shorter one."""
    count, width = rows.shape
    padded = np.zeros((count, -(-width // block) * block), np.float32)
    padded[:, :width] = rows
    blocks = padded.reshape(count, -1, block)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / _STEPS
    step[step == 0] = 1
    error = np.square(np.rint(blocks / step) * step - blocks)
    return np.asarray(error.reshape(count, -1)[:, :width], np.float32)
