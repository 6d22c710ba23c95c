"""Values that a model's conversion to F16 damaged, or will: counted per tensor, on the bit patterns.

F16 ends at ±65,504 and is exact only down to 2⁻¹⁴; below that it loses bits (subnormals), and then everything. A
converter that clips leaves values at exactly the limit, one that does not leaves infinities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.gguf.model import Model
from planner.gguf.reader import Tensor

__all__ = ["Health", "all_finite", "tensor_health"]

_CHUNK = 1 << 20  # values looked at together


@dataclass(frozen=True, slots=True)
class Health:
    """Counts of a tensor's values that need a second look.

    `clipped`: finite, and at F16's limit or beyond (|x| ≥ 65,504). `subnormal`: in the tensor's own type.
    `below_f16`: not zero and below F16's normal range (|x| < 2⁻¹⁴); the same as `subnormal` for F16.
    """

    elements: int
    nan: int
    inf: int
    clipped: int
    subnormal: int
    below_f16: int

    @property
    def is_sound(self) -> bool:
        """True if nothing was clipped and every value is finite."""
        return not (self.nan or self.inf or self.clipped)


@dataclass(frozen=True, slots=True)
class _Layout:
    """A float type's bit patterns without the sign: a value's order is its pattern's order."""

    bits: np.dtype[np.unsignedinteger]
    infinity: int
    limit: int  # the smallest pattern of a value ≥ 65,504
    normal: int  # the type's smallest normal number
    f16_normal: int  # 2⁻¹⁴


_LAYOUTS = {
    "f16": _Layout(np.dtype("<u2"), 0x7C00, 0x7BFF, 0x0400, 0x0400),
    # BF16 has 65,280 and then 65,536
    "bf16": _Layout(np.dtype("<u2"), 0x7F80, 0x4780, 0x0080, 0x3880),
    "f32": _Layout(np.dtype("<u4"), 0x7F80_0000, 0x477F_E000, 0x0080_0000, 0x3880_0000),
}


def tensor_health(model: Model, tensor: Tensor, progress: Callable[[int], None] | None = None) -> Health | None:
    """Count, in bounded memory, or return None for a tensor that is not F32, F16 or BF16.

    `progress` is called with the number of bytes seen since the last call. Threads may call this side by side.
    """
    layout = _LAYOUTS.get(tensor.format)
    if layout is None:
        return None
    step = max(1, _CHUNK // tensor.row_length)
    totals = np.zeros(5, np.int64)
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        totals += _count(_magnitudes(model.raw_rows(tensor, start, stop), layout), layout)
        model.release(tensor, start, stop)
        if progress is not None:
            progress((stop - start) * tensor.row_bytes)
    nan, inf, clipped, subnormal, below = (int(total) for total in totals)
    return Health(tensor.elements, nan, inf, clipped, subnormal, below)


def all_finite(raw: NDArray[np.uint8], stored_as: str) -> bool:
    """Return whether rows of F32, F16 or BF16 hold neither NaN nor infinity."""
    layout = _LAYOUTS[stored_as]
    return bool((_magnitudes(raw, layout) < layout.infinity).all())


def _magnitudes(raw: NDArray[np.uint8], layout: _Layout) -> NDArray[np.unsignedinteger]:
    bits = np.ascontiguousarray(raw).reshape(-1).view(layout.bits)
    masked: NDArray[np.unsignedinteger] = np.bitwise_and(bits, (1 << (8 * layout.bits.itemsize - 1)) - 1)
    return masked


def _count(values: NDArray[np.unsignedinteger], layout: _Layout) -> NDArray[np.int64]:
    # From the largest down: each count is of all at least as large, less those counted before
    at_least = [
        int(np.count_nonzero(values >= bound))
        for bound in (layout.infinity + 1, layout.infinity, layout.limit, layout.f16_normal, layout.normal, 1)
    ]
    nan, inf, limit, f16_normal, normal, nonzero = at_least
    return np.array([nan, inf - nan, limit - inf, nonzero - normal, nonzero - f16_normal], np.int64)
