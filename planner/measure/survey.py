"""Survey all rows of a tensor in one pass: the energy of each output, the weight of each input channel.

The sampler and the structure of the model need only a few dot products per row, so this runs at the speed of reading;
the kernels then run on a sample.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import ModelError
from planner.gguf import Model, Tensor
from planner.measure.moments import Moments
from planner.measure.sums import block_width, sums
from planner.names.gguf import has_massive_channels, is_tied
from planner.work import Stop, Stopped

__all__ = ["Survey", "survey_in_place", "survey_tensor"]

Weights = NDArray[np.float32] | NDArray[np.float16]
Doubles = NDArray[np.float64]
_CHUNK = 1 << 20  # weights in flight: so many that Python between takes no time
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

    Where outputs are not worth the same (`moments.outputs`), all of these count a row's squares by what its output is
    worth. `made`, float64 [matrices], is the energy of all outputs as they are, massive channels included.

    Of a matrix that makes the logits and is `looked_up` too, as the embedding, what is said of massive channels is of
    its rows as they are: Σ_j W_ij².
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
    made: Doubles
    looked_up: bool = False

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

    def worth(self, matrix: int, rows: NDArray[np.int64]) -> Doubles:
        """Return what errors of some rows of a matrix count for, float64 [k], by `rows`, int64 [k], counted through all
        matrices: by how often it is used, and what their outputs are worth."""
        usage, outputs = self.moments.usage[matrix], self.moments.outputs
        return np.full(len(rows), usage) if outputs is None else usage * outputs[rows % self.tensor.rows_per_matrix]

    @property
    def energy(self) -> float:
        """Energy of all outputs, weighted by usage, without massive channels."""
        return float((self.moments.usage @ (self.out_var + self.out_mean**2)).sum())

    @property
    def energy_massive(self) -> float:
        """Energy of all outputs from massive channels alone, weighted by usage."""
        return float((self.moments.usage @ self.massive_energy).sum())


def survey_in_place(model: Model, tensor: Tensor, moments: Moments, stop: Stop = lambda: False) -> Survey:
    """Survey a tensor as its place in the model asks for: `survey_tensor` says how, and what is raised."""
    return survey_tensor(
        model,
        tensor,
        moments,
        find_massive=has_massive_channels(tensor.name),
        looked_up=moments.known and is_tied(tensor.name, model.by_name),
        stop=stop,
    )


def survey_tensor(
    model: Model,
    tensor: Tensor,
    moments: Moments,
    *,
    find_massive: bool,
    looked_up: bool = False,
    stop: Stop = lambda: False,
) -> Survey:
    """Read all rows of a tensor once (twice if massive channels are found).

    Raises ModelError where weights are NaN or infinite, and Stopped soon after `stop()` turns true.
    """
    sha = hashlib.sha256()
    none = np.zeros_like(moments.mean, dtype=np.bool_)
    survey = _pass(model, tensor, moments, none, stop, functools.partial(_read, sha), looked_up=looked_up)
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
    *,
    looked_up: bool = False,
) -> Survey:
    flat = {name: np.zeros(tensor.rows) for name in ("mean", "var", "massive", "expected", "peaks", "expected_massive")}
    columns, outputs = np.zeros(moments.mean.shape), moments.outputs
    # float32 keeps this at the speed of memory
    mean = np.where(massive, 0.0, moments.mean).astype(np.float32)
    variance = np.where(massive, 0.0, moments.variance).astype(np.float32)
    second = _of_blocks(np.where(massive, 0.0, moments.second))
    plain = np.where(_of_blocks(massive) > 0, 0.0, second)
    for matrix, start, end in tensor.slices(_CHUNK):
        if stop():
            raise Stopped
        raw = model.raw_rows(tensor, start, end)
        digest(raw.data)
        rows = raw.view(np.float16) if tensor.format == "f16" else model.rows(tensor, start, end)
        here = slice(start, end)
        with np.errstate(invalid="ignore", over="ignore"):  # asked about below, once a tensor
            of_columns, of_rows = sums(rows, mean[matrix], variance[matrix], plain[matrix])
            if outputs is not None:
                of_columns = outputs[start - matrix * len(outputs) :][: end - start] @ np.square(rows, dtype=np.float32)
            columns[matrix] += of_columns
            for name, values in zip(("mean", "var", "expected", "peaks"), of_rows, strict=True):
                flat[name][here] = values
            if massive[matrix].any():
                for name, values in _massive_sums(rows, moments, matrix, massive[matrix], second[matrix]).items():
                    flat[name][here] += values
            if looked_up:
                floats = rows.astype(np.float32, copy=False)
                flat["massive"][here] = flat["expected_massive"][here] = np.einsum("ij,ij->i", floats, floats)
        model.release(tensor, start, end)
    _check_finite(tensor, columns, flat.values())
    shape = (tensor.matrices, tensor.rows_per_matrix)
    made = (flat["var"] + flat["mean"] ** 2 + flat["massive"]).reshape(shape).sum(axis=1)
    if outputs is not None:
        for name, values in flat.items():
            values *= np.tile(np.sqrt(outputs) if name == "mean" else outputs, tensor.matrices)
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
        made=made,
        looked_up=looked_up,
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


def _massive_sums(
    rows: Weights, moments: Moments, matrix: int, massive: NDArray[np.bool_], second: Doubles
) -> dict[str, Doubles]:
    """Return what massive channels, bool [n], of rows [r, n] and the blocks that they are in add to sums of the
    rows, float64 [r] each; `second` of the blocks is without massive channels."""
    few = rows[:, massive].astype(np.float64)
    energy = (few * few) @ moments.variance[matrix, massive] + (few @ moments.mean[matrix, massive]) ** 2
    width = block_width(len(massive))
    shared = massive.reshape(-1, width)
    here = shared.any(axis=1)
    heavy = (moments.second[matrix] * massive).reshape(-1, width).mean(axis=1)
    squares = rows.reshape(len(rows), -1, width)[:, here].astype(np.float64) ** 2
    return {
        "massive": energy,
        "expected_massive": squares.sum(axis=2) @ heavy[here],
        "peaks": squares.max(axis=2) @ second[here],  # of massive channels too: they share the scales
        "expected": (squares * ~shared[here]).sum(axis=2) @ second[here],
    }


def _of_blocks(values: NDArray[Any]) -> Doubles:
    """Return the mean of each block's channels, float64 [matrices, blocks]."""
    means: Doubles = values.reshape(len(values), -1, block_width(values.shape[1])).mean(axis=2)
    return means
