"""Half-precision floats as single ones: in integers, many side by side, which ggml's base library does not do.

Of a half, sign, exponent and fraction move to their places, and the exponent is counted from 127, not 15. Subnormal
ones, fractions in units of 2⁻²⁴, are normal floats. NaN keep their bits, and are quiet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled

__all__ = ["widen"]

_SIGN, _INFINITE, _NORMAL = np.int32(0x8000), np.int32(0x7C00), np.int32(0x0400)
_RAISED, _RAISED_MOST = np.int32((127 - 15) << 23), np.int32((255 - 31) << 23)
_FRACTION, _PLACES = np.int32(13), np.int32(16)  # places to the left: of all but the sign, and of that
_QUIET = np.int32(0x0040_0000)
_UNIT = np.float32(2.0**-24)


@compiled
def widen(halves: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """Write the values of halves, u16[n], to f32[n]."""
    bits = out.view(np.int32)
    for i in range(halves.size):
        half = np.int32(halves[i])
        size = half & ~_SIGN
        out[i] = np.float32(size) * _UNIT
        normal = (size << _FRACTION) + (_RAISED if size < _INFINITE else _RAISED_MOST)
        normal |= _QUIET if size > _INFINITE else np.int32(0)
        bits[i] = (normal if size >= _NORMAL else bits[i]) | ((half & _SIGN) << _PLACES)
