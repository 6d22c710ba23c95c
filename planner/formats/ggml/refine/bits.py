"""Compiled: numbers of blocks, read and written piece by piece.

A piece is what a number has in one byte: the byte, how far up in it, the bits that it has there, and how far up in the
number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled

__all__ = ["read", "write"]

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]


@compiled
def read(blocks: Bytes, pieces: Numbers, numbers: Numbers) -> None:
    """Add the numbers of blocks u8[b, bytes], told by pieces i32[count, p, 4], to `numbers`, i32[b, count]."""
    for block in range(len(blocks)):
        for k in range(len(pieces)):
            for byte, shift, mask, up in pieces[k]:
                numbers[block, k] |= (np.int32(blocks[block, byte]) >> shift & mask) << up


@compiled
def write(blocks: Bytes, pieces: Numbers, numbers: Numbers) -> None:
    """Put numbers i32[b, count] into blocks u8[b, bytes], as `read` finds them."""
    for block in range(len(blocks)):
        for k in range(len(pieces)):
            for byte, shift, mask, up in pieces[k]:
                others = np.int32(blocks[block, byte]) & ~(mask << shift)
                blocks[block, byte] = others | (numbers[block, k] >> up & mask) << shift
