"""Survey all rows of a tensor in one pass: the energy of each output, the weight of each input channel.

The sampler and the structure of the model need only a few dot products per row, so this runs at the speed of reading;
the kernels then run on a sample.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.errors import ModelError
from planner.gguf import Model, Tensor
from planner.measure.moments import Moments
from planner.work import Stop, Stopped

__all__ = ["Survey", "survey_tensor"]

Doubles = NDArray[np.float64]
_CHUNK = 1 << 18  # weights in flight: what a core's cache holds
_BLOCK = 32  # the smallest block of the usual formats
# A channel is massive when its energy exceeds both: see "Massive activations" in docs/design.md
_MASSIVE_RATIO = 30.0
_MASSIVE_SHARE = 0.05


@dataclass(frozen=True)
class Survey:
    """Sums over all rows of a tensor; `rows` = matrices x rows_per_matrix, n = row length.

    `out_mean` = Σ_j m_j W_ij and `out_var` = Σ_j var_j W_ij², float64 [matrices, rows_per_matrix], without massive
    channels: mean and variance of the tensor's outputs. `massive` marks massive input channels, bool [matrices, n];
    `massive_energy` is the rows' energy in those alone. `columns` = Σ_i W_ij², float64 [matrices, n], is over all.
    `expected_error`, float64 [2, matrices, rows_per_matrix], and `expected_massive_error`, float64 [matrices,
    rows_per_matrix], are proportional to the error to be expected of a row. Formats spread their error evenly over a
    block, so it is what each block loses times its mean E[a²]: a share of the block's energy in some formats (the
    first, and in massive channels), of its largest square in others (the second). `digest` is the SHA-256 of the
    tensor's data.
    """

    tensor: Tensor
    moments: Moments
    digest: str
    out_mean: Doubles
    out_var: Doubles
    columns: Doubles
    massive: NDArray[np.bool_]
    massive_energy: Doubles
    expected_error: Doubles
    expected_massive_error: Doubles

    def slim(self) -> Survey:
        """Return a smaller survey, without the outputs of single rows; `energy` is kept as one number a matrix."""
        energy = (self.out_var + self.out_mean**2).sum(axis=1, keepdims=True)
        return replace(self, out_var=energy, out_mean=np.zeros_like(energy))

    def errors_of_outputs(self) -> Doubles:
        """Return the energy of the error of each output where the tensor's relative error is 1, float64 [matrices,
        rows_per_matrix]. It lies where rows are large, whatever their outputs come to: as expected of both kinds."""
        usage = self.moments.usage
        totals = (self.expected_error.sum(axis=2) @ usage)[:, None, None]
        if not totals.all():
            return np.zeros(self.out_mean.shape)
        return np.asarray((self.expected_error / totals).mean(axis=0) * self.energy)

    @property
    def energy(self) -> float:
        """Energy of all outputs, weighted by usage, without massive channels."""
        return float((self.moments.usage @ (self.out_var + self.out_mean**2)).sum())

    @property
    def energy_massive(self) -> float:
        """Energy of all outputs from massive channels alone, weighted by usage."""
        return float((self.moments.usage @ self.massive_energy).sum())


def survey_tensor(
    model: Model, tensor: Tensor, moments: Moments, *, find_massive: bool, stop: Stop = lambda: False
) -> Survey:
    """Read all rows of a tensor once (twice if massive channels are found).

    Raises ModelError where weights are NaN or infinite, and Stopped soon after `stop()` turns true.
    """
    sha = hashlib.sha256()
    survey = _pass(
        model, tensor, moments, np.zeros_like(moments.mean, dtype=np.bool_), stop, functools.partial(_read, sha)
    )
    survey = replace(survey, digest=sha.hexdigest())
    if not find_massive:
        return survey
    massive = massive_channels(moments, survey.columns)
    if not massive.any():
        return survey
    again = _pass(model, tensor, moments.with_massive(massive), massive, stop, lambda _: None)
    return replace(again, digest=survey.digest)


def _read(sha: hashlib._Hash, data: memoryview) -> None:
    """Look at a piece of the file for the first time."""
    sha.update(data)


def massive_channels(moments: Moments, columns: Doubles) -> NDArray[np.bool_]:
    """Return which input channels carry a massive activation, bool [matrices, n]."""
    energy = moments.usage[:, None] * moments.token_second * columns
    total = float(energy.sum())
    others = (total - energy) / max(energy.size - 1, 1)
    return (energy > _MASSIVE_RATIO * others) & (energy > _MASSIVE_SHARE * total)


def _pass(
    model: Model,
    tensor: Tensor,
    moments: Moments,
    massive: NDArray[np.bool_],
    stop: Stop,
    digest: Callable[[memoryview], None],
) -> Survey:
    flat = {name: np.zeros(tensor.rows) for name in ("mean", "var", "massive", "expected", "peaks", "expected_massive")}
    columns = np.zeros(moments.mean.shape)
    # float32 keeps this at the speed of memory: sums of n squares are good to about 1e-7 √n
    mean = np.where(massive, 0.0, moments.mean).astype(np.float32)
    variance = np.where(massive, 0.0, moments.variance).astype(np.float32)
    second = _smooth(np.where(massive, 0.0, moments.second))
    massive_second = _smooth(np.where(massive, moments.second, 0.0))
    blocks = np.arange(0, tensor.row_length, _width(tensor.row_length))
    for matrix, start, end in tensor.slices(_CHUNK):
        if stop():
            raise Stopped
        raw = model.raw_rows(tensor, start, end)
        digest(raw.data)
        rows = model.rows(tensor, start, end)
        here = slice(start, end)
        with np.errstate(invalid="ignore", over="ignore"):  # asked about below, once a tensor
            squares = rows * rows
            columns[matrix] += np.einsum("ij->j", squares)
            flat["var"][here] = np.einsum("ij,j->i", squares, variance[matrix])
            if moments.has_mean:
                flat["mean"][here] = np.einsum("ij,j->i", rows, mean[matrix])
            peaks = np.maximum.reduceat(squares, blocks, axis=1)  # massive channels too: they share the scales
            flat["peaks"][here] = np.einsum("ij,j->i", peaks, second[matrix, blocks])
            which = np.flatnonzero(massive[matrix])
            if len(which):
                few = rows[:, which].astype(np.float64)
                flat["massive"][here] = (few * few) @ moments.variance[matrix, which]
                flat["massive"][here] += (few @ moments.mean[matrix, which]) ** 2
                flat["expected_massive"][here] = np.einsum("ij,j->i", squares, massive_second[matrix])
                squares[:, which] = 0.0
            flat["expected"][here] = np.einsum("ij,j->i", squares, second[matrix])
        model.release(tensor, start, end)
    _check_finite(tensor, columns, flat.values())
    shape = (tensor.matrices, tensor.rows_per_matrix)
    return Survey(
        tensor=tensor,
        moments=moments,
        digest="",
        out_mean=flat["mean"].reshape(shape),
        out_var=flat["var"].reshape(shape),
        columns=columns,
        massive=massive,
        massive_energy=flat["massive"].reshape(shape),
        expected_error=np.stack([flat["expected"], flat["peaks"]]).reshape(2, *shape),
        expected_massive_error=flat["expected_massive"].reshape(shape),
    )


def _check_finite(tensor: Tensor, columns: Doubles, others: Iterable[Doubles]) -> None:
    if not np.isfinite(columns).all():
        raise ModelError(
            f"{tensor.name} holds NaN or infinite weights, or weights too large to square.",
            "Convert the model again from its original; `planner inspect` counts such values in every tensor.",
        )
    if not all(np.isfinite(values).all() for values in others):
        raise ModelError(
            f"{tensor.name} has weights that are too large to square, with the importance of its channels.",
            "Convert the model again from its original, or give the imatrix that belongs to it: `planner inspect` "
            "shows both.",
        )


def _smooth(values: Doubles) -> NDArray[np.float32]:
    """Replace each channel's value by the mean of its block, float32 [matrices, n]."""
    width = _width(values.shape[1])
    means: Doubles = values.reshape(len(values), -1, width).mean(axis=2)
    return means.repeat(width, axis=1).astype(np.float32)


def _width(row_length: int) -> int:
    return _BLOCK if row_length % _BLOCK == 0 else 1
