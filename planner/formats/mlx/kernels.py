"""MLX's affine quantization, bit for bit as its CPU backend computes it (`quantize` in mlx/backend/cpu/quantized.cpp).

In a group of weights the *edge* is the one farthest from zero. The step `(max - min) / (2^bits - 1)` is stretched a
little so that zero, and with it the edge, falls on a whole number of steps; the edge is the bias. All this is float32;
scale and bias are then rounded to the type of the weights, but codes are those of the scale before.

That type is the checkpoint's, which a GGUF does not say: it may have been converted. It matters, for a scale of 8
significant bits (bf16) moves the far end of 8-bit codes by up to half a step. A row of weights that bf16 holds exactly
is therefore taken for one of a bf16 checkpoint, other rows that f16 holds for one of f16. What neither holds is rounded
to bf16 first, as mlx-lm rounds a float32 checkpoint that is converted with `--dtype bfloat16`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError
from planner.formats.mlx.formats import Affine

__all__ = ["KERNEL", "Quantized", "dequantize_affine", "quantize_affine", "round_trip_affine"]

Floats = NDArray[np.float32]

KERNEL = "mlx-affine 1"
"""Part of the key of every measurement: raise the number when a result would change."""

_EPS = np.float32(1e-7)
_LARGEST = 1e38  # the span of a group's weights is a float32 too


class Quantized(NamedTuple):
    """Rows as MLX stores them: `weights` uint8 [r, n·bits/8], the bytes of MLX's uint32 array on a little-endian
    machine; `scales` and `biases` float32 [r, n/group], values that the 16-bit type of the row holds."""

    weights: NDArray[np.uint8]
    scales: Floats
    biases: Floats


def quantize_affine(fmt: Affine, rows: Floats) -> Quantized:
    """Quantize rows, float32 [r, n], as `mx.quantize` does. Raises ValueError for shapes that groups do not fill,
    KernelError for weights that are not finite."""
    codes, scales, biases = _codes(fmt, rows)
    count, length = rows.shape
    bits = np.unpackbits(codes.astype(np.uint8).reshape(count, length, 1), axis=2, count=fmt.bits, bitorder="little")
    packed = np.packbits(bits.reshape(count, length * fmt.bits), axis=1, bitorder="little")
    return Quantized(packed, scales, biases)


def dequantize_affine(fmt: Affine, data: Quantized) -> Floats:
    """Return rows, float32 [r, n], as MLX's products with quantized matrices see them: scales and biases are 16 bits
    wide, the arithmetic is float32."""
    count, groups = data.scales.shape
    length = groups * fmt.group
    bits = np.unpackbits(data.weights, axis=1, bitorder="little").reshape(count, length, fmt.bits)
    codes = np.packbits(bits, axis=2, bitorder="little").astype(np.float32)
    return _values(codes.reshape(count, groups, fmt.group), data.scales, data.biases)


def round_trip_affine(fmt: Affine, rows: Floats) -> Floats:
    """Quantize and dequantize rows, float32 [r, n], without packing in between. Raises as `quantize_affine`."""
    return _values(*_codes(fmt, rows))


def _values(codes: Floats, scales: Floats, biases: Floats) -> Floats:
    count, groups, group = codes.shape
    return (codes * scales[:, :, None] + biases[:, :, None]).reshape(count, groups * group)


def _codes(fmt: Affine, rows: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the codes as integers in float32 [r, groups, group], and scales and biases, float32 [r, groups]."""
    if rows.dtype != np.float32 or rows.ndim != 2 or not fmt.fits(rows.shape[1]):
        raise ValueError(f"rows must be float32 [r, a multiple of {fmt.group}], not {rows.dtype} {rows.shape}")
    largest = max(abs(float(rows.min(initial=0))), abs(float(rows.max(initial=0))))
    if not largest < _LARGEST:  # NaN too
        raise KernelError(
            f"The weights hold NaN, infinite or excessive values, which {fmt.name} cannot store.",
            "Convert the model again from its original; `planner inspect` counts such values in each tensor.",
        )
    in_f16 = _only_f16(rows)
    groups = rows.shape[1] // fmt.group
    weights = np.where(in_f16[:, None], rows, _bf16(rows)).reshape(len(rows), groups, fmt.group)
    bins = np.float32((1 << fmt.bits) - 1)
    top, bottom = weights.max(axis=2), weights.min(axis=2)
    below = np.abs(bottom) > np.abs(top)
    step = np.maximum((top - bottom) / bins, _EPS)
    step = np.where(below, step, -step)
    edge = np.where(below, bottom, top)
    whole = np.rint(edge / step)
    scales = np.divide(edge, whole, out=step, where=whole != 0)
    biases = np.where(whole != 0, edge, np.float32(0))
    codes = np.rint((weights - biases[:, :, None]) / scales[:, :, None])
    np.clip(codes, 0, bins, out=codes)
    return codes, _rounded(scales, in_f16), _rounded(biases, in_f16)


def _only_f16(rows: Floats) -> NDArray[np.bool_]:
    """Return which rows f16 holds exactly and bf16 does not."""
    in_bf16 = (rows.view(np.uint32) & 0xFFFF == 0).all(axis=1)
    with np.errstate(over="ignore"):
        in_f16 = (rows.astype(np.float16).astype(np.float32) == rows).all(axis=1)
    only: NDArray[np.bool_] = in_f16 & ~in_bf16
    return only


def _rounded(values: Floats, in_f16: NDArray[np.bool_]) -> Floats:
    with np.errstate(over="ignore"):  # of rows that are not f16's
        return np.where(in_f16[:, None], values.astype(np.float16).astype(np.float32), _bf16(values))


def _bf16(values: Floats) -> Floats:
    """Round to the nearest bf16, ties to even; finite values only."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: Floats = ((bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
