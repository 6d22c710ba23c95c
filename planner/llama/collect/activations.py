"""Activations that go into the weights while a model runs, as the engine's observers see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from planner.errors import InferenceError, ModelError
from planner.llama.graph import Node, Tensor

__all__ = ["Floats", "Group", "activations_of", "ids_of", "not_finite", "rows_of", "values_of"]

Floats = NDArray[np.float32]

_I32 = 26  # enum ggml_type


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that one of the weight's matrices sees, f32[rows, n], in the order in which llama-imatrix adds them;
    `tokens`, i64[rows], are the numbers of their tokens in the batch, and `outputs`, i64[rows], those of the rows of
    the result that are made of them."""

    matrix: int
    rows: Floats
    tokens: NDArray[np.int64]
    outputs: NDArray[np.int64]


def not_finite(weight: str) -> ModelError:
    """Return the error of activations that go into a weight."""
    return ModelError(
        f"NaN or infinite activations go into {weight}.",
        "Look for damage with `planner inspect MODEL`; a model made for BF16 may not stand F16.",
    )


def activations_of(node: Node) -> list[Group]:
    """Return the activations, f32, of a multiplication (MUL_MAT or MUL_MAT_ID) by matrix of its weight.

    Raises InferenceError for experts that are chosen in an unknown way.
    """
    return _of_experts(node) if node.operation == "MUL_MAT_ID" else _of_matrices(node)


def rows_of(activations: Tensor) -> Floats:
    """Return all rows of activations, f32[rows, n], whichever matrix each is for."""
    values = values_of(activations)
    return values.reshape(-1, values.shape[3])


def _of_matrices(node: Node) -> list[Group]:
    """Give each matrix of the weight the activations of its index; a single one gets all."""
    weight, activations = node.sources[:2]
    values = values_of(activations)
    inner, outer = weight.shape[2:4]
    if inner * outer == 1:
        rows = rows_of(activations)
        return [Group(0, rows, np.arange(len(rows)), np.arange(len(rows)))]
    tokens = np.arange(values.shape[2])
    return [
        Group(
            (third % outer) * inner + second % inner,
            values[third, second],
            tokens,
            (third * values.shape[1] + second) * values.shape[2] + tokens,
        )
        for third in range(values.shape[0])
        for second in range(values.shape[1])
    ]


def _of_experts(node: Node) -> list[Group]:
    """Give each expert its activations: `ids` [experts used, tokens] are the experts of each token, and `activations`
    [n, experts used or 1, tokens] the rows for each of them."""
    weight, activations, ids = node.sources
    experts = weight.shape[2]
    width, variants, tokens, outer = activations.shape
    chosen = _array(ids, np.int32)[0, 0].T  # [used, tokens], and in this order they are added up
    if outer != 1 or ids.type != _I32 or chosen.shape[1] != tokens:
        raise InferenceError(f"llama.cpp routes to experts in a way that is not known here: {ids.name}.")
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < experts:
        raise InferenceError(f"llama.cpp routes to experts from {chosen.min()} to {chosen.max()}, of {experts}.")
    order = np.argsort(chosen, axis=None, kind="stable")
    slot, token = np.divmod(order, tokens)
    values = values_of(activations).reshape(tokens * variants, width)
    grouped: Floats = values[token * variants + slot % variants]
    present, begins = np.unique(chosen.reshape(-1)[order], return_index=True)
    parts = (np.split(array, begins[1:]) for array in (grouped, token, token * len(chosen) + slot))
    return [Group(int(matrix), *group) for matrix, *group in zip(present, *parts, strict=True)]


def ids_of(tensor: Tensor) -> NDArray[np.int32]:
    """Return the values of an i32 tensor, such as tokens, in numpy's order of dimensions."""
    ids: NDArray[np.int32] = _array(tensor, np.int32)  # type: ignore[assignment]
    return ids


def values_of(tensor: Tensor) -> Floats:
    """Return the values of an f32 tensor in numpy's order of dimensions."""
    values: Floats = _array(tensor, np.float32)  # type: ignore[assignment]
    return values


def _array(tensor: Tensor, dtype: DTypeLike) -> NDArray[np.generic]:
    """Return the tensor's values in numpy's order of dimensions, whatever their strides."""
    return np.ndarray(tensor.shape[::-1], dtype, tensor.read(), strides=tensor.strides[::-1])
