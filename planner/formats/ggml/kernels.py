"""Quantize and dequantize rows to the bytes of the library's kernels; every shape and size is checked first.

ggml's kernels abort the process when something is wrong, so nothing reaches them unchecked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError
from planner.formats.ggml import fast, reference
from planner.formats.ggml.formats import Format, formats
from planner.formats.ggml.reference import address
from planner.formats.ggml.types import type_of

__all__ = [
    "FAINTEST_WEIGHT",
    "dequantize_rows",
    "prepare_tables",
    "quantize_rows",
    "rows_are_valid",
    "tables_ready",
]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Kernels sum products of powers of weights (`Format.degree`) and imatrix values over a row in float32
_LARGEST_PRODUCT = 1e34
FAINTEST_WEIGHT = 1e-30  # an imatrix value below is none: such products would be too small


def _check_rows(fmt: Format, rows: Floats) -> None:
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.flags.c_contiguous:
        raise ValueError(f"rows must be a C-contiguous float32 matrix, not {rows.dtype} {rows.shape}")
    if not fmt.fits(rows.shape[1]):
        raise ValueError(f"rows of {rows.shape[1]} weights are no whole number of {fmt.name}'s {fmt.block}")
    if fmt is not formats().get(fmt.name) or not fmt.for_weights:
        raise ValueError(f"{fmt.name} is not a format of the loaded library that weights convert to")


def _check_range(fmt: Format, rows: Floats, weights: Floats | None) -> None:
    # min and max see NaN and Inf too, at a fraction of the cost of isfinite
    largest = max(abs(float(rows.min(initial=0))), abs(float(rows.max(initial=0))))
    if not np.isfinite(largest):
        raise KernelError(
            f"The weights hold NaN or infinite values, which {fmt.name} cannot store.",
            "Convert the model again from its original; `planner inspect` counts such values in each tensor.",
        )
    heaviest = float(weights.max(initial=0)) if weights is not None else 1.0
    if not fmt.quantized or largest**fmt.degree * max(heaviest, 1.0) * rows.shape[1] < _LARGEST_PRODUCT:
        return
    raise KernelError(
        f"Weights as large as {largest:g} (imatrix values to {heaviest:g}) overflow the kernel of {fmt.name}.",
        "Check the model's and the imatrix's origin; leave such a tensor as it is with a pin to f32 or bf16.",
    )


def _weighed(fmt: Format, weights: Floats) -> Floats:
    """Return the imatrix values, with the mean of their block (or ones) for groups of channels that have none: where
    nothing counts, kernels store zeros, or whatever they tried first."""
    count = type_of(fmt.name).groups
    groups = weights.reshape(-1, fmt.block // count)
    none = groups.max(axis=1) < FAINTEST_WEIGHT
    if not none.any():
        return weights
    means = weights.reshape(-1, fmt.block).mean(axis=1)
    means[means < FAINTEST_WEIGHT] = 1
    return np.where(none[:, None], means.repeat(count)[:, None], groups).reshape(-1)


def quantize_rows(fmt: Format, rows: Floats, weights: Floats | None = None) -> Bytes:
    """Quantize rows to a format, with the bytes that `llama-quantize` would write.

    `rows` is float32 [r, n]; `weights` are the imatrix values of the row's n channels, float32 [n], finite and
    not negative, or None. Where they are all zero for weights that share a scale, llama-quantize would lose these, and
    here they are weighed evenly. Returns uint8 [r, fmt.row_bytes(n)]. Releases the GIL. Raises ValueError for
    wrong shapes or a missing imatrix, KernelError for values that the kernels cannot take.
    """
    _check_rows(fmt, rows)
    if weights is not None:
        if weights.dtype != np.float32 or weights.shape != rows.shape[1:] or not weights.flags.c_contiguous:
            raise ValueError(f"imatrix values must be float32 [{rows.shape[1]}], not {weights.dtype} {weights.shape}")
        if not (np.isfinite(weights).all() and float(weights.min(initial=0)) >= 0):
            raise ValueError("imatrix values must be finite and not negative")
        weights = _weighed(fmt, weights)
    elif fmt.needs_imatrix:
        raise ValueError(f"{fmt.name} cannot be made without an imatrix")
    _check_range(fmt, rows, weights)

    return fast.quantize(fmt, rows, weights)


def dequantize_rows(fmt: Format, data: Bytes, row_length: int) -> Floats:
    """Return rows of a format as float32 [r, row_length] from uint8 [r, fmt.row_bytes(row_length)].

    Raises ValueError for wrong shapes, KernelError for a type that the library cannot convert.
    """
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != fmt.row_bytes(row_length):
        raise ValueError(
            f"{fmt.name} data must be uint8 [r, {fmt.row_bytes(row_length)}], not {data.dtype} {data.shape}"
        )
    if fmt.name == "f32":
        return np.ascontiguousarray(data).view(np.float32)
    return fast.dequantize(fmt, np.ascontiguousarray(data), row_length)


def rows_are_valid(fmt: Format, data: Bytes) -> bool:
    """Return whether ggml accepts the bytes as rows of the format, u8[r, fmt.row_bytes(n)]: no NaN or Inf scales."""
    if not fmt.validated:
        length = (data.shape[1] - fmt.row_header) // fmt.block_bytes * fmt.block
        return bool(np.isfinite(dequantize_rows(fmt, data, length)).all())
    data = np.ascontiguousarray(data)
    return bool(fmt.library.validate_row_data(fmt.id, address(data), data.nbytes)) if data.size else True


def tables_ready(fmt: Format) -> bool:
    """Return whether rows can be quantized at once: by a kernel that has its tables, or by ours, which needs none."""
    return reference.tables_ready(fmt) or fast.at_once(fmt)


def prepare_tables(wanted: tuple[Format, ...]) -> None:
    """Build the tables of the formats that need them (`reference.prepare_tables`)."""
    reference.prepare_tables(tuple(fmt for fmt in wanted if not fast.at_once(fmt)))
