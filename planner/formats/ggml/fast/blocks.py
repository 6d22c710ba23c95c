"""Blocks laid side by side, a lane each; what counts their weights; and their bytes put where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic
from numpy.typing import NDArray

from planner.compiled.compiler import part
from planner.compiled.lanes import LANES, absolute, load, place, spread, square_root, store, where

__all__ = ["FAINTEST", "SUPER", "apart", "beside", "energy", "extreme", "lay", "squares", "store_half", "weigh"]

Floats = NDArray[np.float32]

SUPER = 256  # weights of a super-block, QK_K
FAINTEST = np.float32(1e-15)  # the largest weight of a block that is all zeros, GROUP_MAX_EPS

_INDEX = ir.IntType(64)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return `LANES` vectors transposed: each of four rounds interleaves the first half with the last."""
    half = LANES // 2
    parts = [
        ir.Constant(ir.VectorType(ir.IntType(32), LANES), [at + own for at in lanes for own in (0, LANES)])
        for lanes in (range(half), range(half, LANES))
    ]
    for _ in range(LANES.bit_length() - 1):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [builder.shuffle_vector(a, b, part) for a, b in pairs for part in parts]
    return rows


@intrinsic  # type: ignore[untyped-decorator]
def _tile(typing: Any, source: Any, starts: Any, shift: Any, out: Any, ends: Any, further: Any) -> Any:
    """Transpose `LANES` runs of as many numbers: run i of one flat array begins at starts[i] + shift, of the other at
    ends[i] + further."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_data_type(source.dtype)
        width = source.dtype.bitwidth // 8

        def data(kind: Any, array: Any) -> Any:
            return context.make_array(kind)(context, builder, array).data

        def pointers(kind: Any, array: Any, places: Any, shift: Any) -> list[Any]:
            own = (builder.load(builder.gep(places, [ir.Constant(_INDEX, lane)])) for lane in range(LANES))
            whole = ir.VectorType(element, LANES).as_pointer()
            return [builder.bitcast(builder.gep(data(kind, array), [builder.add(at, shift)]), whole) for at in own]

        taken = pointers(source, args[0], data(starts, args[1]), args[2])
        put = pointers(out, args[3], data(ends, args[4]), args[5])
        rows = _transposed(builder, [builder.load(pointer, align=width) for pointer in taken])
        for row, pointer in zip(rows, put, strict=True):
            builder.store(row, pointer, align=width)
        return context.get_dummy_value()

    return signature(types.void, source, starts, types.intp, out, ends, types.intp), code


@part
def beside(source: Any, starts: NDArray[np.int64], count: int, out: Any) -> None:
    """Lay `count` numbers (a multiple of `LANES`) of a flat array from each of `starts`, i64[LANES], on side by side:
    those of one lane are `LANES` apart."""
    ends = np.arange(0, LANES * LANES, LANES)
    for i in range(0, count, LANES):
        _tile(source, starts, i, out, ends, i * LANES)


@part
def lay(flat: Any, begin: int, count: int, n: int, starts: NDArray[np.int64], out: Any) -> None:
    """Lay the blocks of n numbers of a flat array from number `begin` of `count` on side by side (`place`)."""
    place(begin, count, n, flat.size, starts)
    beside(flat, starts, n, out)


@part
def store_half(stage: Any, at: int, word: Any) -> None:
    """Put the two bytes of half-precision floats into a stage of bytes, those of one lane `LANES` apart."""
    store(stage, at, word)
    store(stage, at + LANES, word >> 8)


@part
def energy(x: Floats, at: int, n: int) -> Any:
    """Return the sum of squares of n weights in each lane, from the first to the last."""
    total = spread(np.float32(0))
    for i in range(at, at + n * LANES, LANES):
        v = load(x, i)
        total += v * v
    return total


@part
def apart(stage: Any, size: int, begin: int, count: int, out: Any) -> None:
    """Put blocks of `size` bytes that lie side by side into `out`, u8[r, bytes], as blocks `begin` and following of
    `count`. `stage` has room for a multiple of `LANES` bytes of each."""
    wide, data = (size + LANES - 1) // LANES * LANES, out.reshape(out.size)
    begins, ends = np.arange(0, LANES * LANES, LANES), np.arange(0, LANES * wide, wide)
    blocks = np.empty(LANES * wide, np.uint8)
    for i in range(0, wide, LANES):
        _tile(stage, begins, i * LANES, blocks, ends, i)
    for lane in range(min(LANES, count - begin)):
        for i in range(size):
            data[(begin + lane) * size + i] = blocks[lane * wide + i]


@part
def squares(rows: Floats) -> Floats:
    """Return the sum of squares of each row, in the order of its weights, sixteen rows at a time."""
    count, n = rows.shape
    flat, starts = rows.reshape(rows.size), np.empty(LANES, np.int64)
    x, sums = np.empty(32 * LANES, np.float32), np.empty(count + LANES, np.float32)
    for row in range(0, count, LANES):
        place(row, count, n, rows.size, starts)
        total = spread(np.float32(0))
        for _ in range(0, n, 32):
            beside(flat, starts, 32, x)
            for i in range(0, 32 * LANES, LANES):
                total += load(x, i) * load(x, i)
            for lane in range(LANES):
                starts[lane] += 32
        store(sums, row, total)
    return sums


@part
def weigh(x: Floats, w: Floats, n: int, sigma2: Any) -> None:
    """Multiply imatrix values of n weights in each lane with what counts a weight more the larger it is."""
    for i in range(0, n * LANES, LANES):
        v = load(x, i)
        store(w, i, load(w, i) * square_root(sigma2 + v * v))


@part
def extreme(x: Floats, at: int, n: int) -> Any:
    """Return the largest of n weights in each lane, by size: its size, and it."""
    size, largest = spread(np.float32(0)), spread(np.float32(0))
    for i in range(at, at + n * LANES, LANES):
        v = load(x, i)
        larger = absolute(v) > size
        size, largest = where(larger, absolute(v), size), where(larger, v, largest)
    return size, largest
