"""Whether a quantizer gives the bytes of the loaded ggml, on blocks of which every kind is awkward in its own way.

ggml can be built with contracted multiplications, for other processors, or be of another version; then its bytes are
others, and it has to do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml.formats import Format
from planner.formats.ggml.reference import quantize_by_ggml
from planner.formats.ggml.types import type_of

__all__ = ["agrees", "awkward_rows", "awkward_weights"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ROWS, _WIDE, _SEED = 48, 512, 20  # some milliseconds of ggml's time
_RUN = 16  # weights that are of one kind in rows of many


def agrees(fmt: Format, function: Callable[[Floats, Floats, Bytes], None], without: bool) -> bool:
    """Return whether a quantizer and ggml write the same bytes with imatrix values, and `without`, if it is to."""
    random = np.random.default_rng(_SEED)
    for weights in (*awkward_weights(random, _WIDE, fmt), *([None] if without else [])):
        rows = awkward_rows(random, _ROWS, _WIDE)
        expected = quantize_by_ggml(fmt, rows, weights)
        out = np.zeros_like(expected)
        function(rows, np.empty(0, np.float32) if weights is None else weights, out)
        if not np.array_equal(out, expected):
            return False
    return True


def awkward_rows(random: np.random.Generator, count: int, wide: int) -> Floats:
    """Return rows f32[count, wide] of made-up weights, `wide` a multiple of 32: zeros, ties, constants, single ones, of
    one sign, subnormal, faint, huge, of all sizes; every fifth row has all kinds in it."""
    shape, runs = (count, wide), (count, wide // _RUN)
    normal = random.standard_normal(shape)
    single = np.zeros(shape)
    places = np.arange(0, wide, 32) + random.integers(32, size=(count, wide // 32))
    single[np.arange(count)[:, None], places] = 1
    kinds = (
        normal * 0.02,
        normal / (np.abs(random.standard_normal(shape)) + 0.05),
        (normal * 0.05).astype(np.float16),
        np.zeros(shape),
        -np.zeros(shape),
        np.broadcast_to(normal[:, :1], shape),
        normal[:, :1] + normal * 1e-7,
        single * normal,
        np.rint(normal * 3) / 8,
        np.rint(normal * 40) / 1024,
        np.abs(normal) + 0.01,
        -np.abs(normal) - 0.01,
        normal * 1e-41,
        normal * 10.0 ** random.uniform(-24, -10, (count, 1)),
        normal * 1e13,
        normal * 10.0 ** random.uniform(-9, 9, runs).repeat(_RUN, axis=1),
        np.broadcast_to(np.arange(wide) % 32 - 15.5, shape),
        np.sign(normal),
    )
    table = np.stack([kind.astype(np.float32) for kind in kinds])
    chosen = np.broadcast_to(np.arange(count)[:, None] % len(kinds), shape).copy()
    chosen[::5] = random.integers(len(kinds), size=runs).repeat(_RUN, axis=1)[::5]
    return np.ascontiguousarray(np.take_along_axis(table, chosen[None], axis=0)[0])


def awkward_weights(random: np.random.Generator, wide: int, fmt: Format) -> Iterator[Floats]:
    """Yield made-up imatrix values f32[wide] that a format can take: ordinary, of all sizes, equal, mostly zero."""
    yield random.standard_normal(wide).astype(np.float32) ** 2
    yield np.exp(4 * random.standard_normal(wide)).astype(np.float32)
    yield np.full(wide, 1, np.float32)
    yield np.full(wide, 1e-29, np.float32)
    sparse = np.where(random.random(wide) < 0.2, random.random(wide), 0).astype(np.float32)
    sparse[:: fmt.block // type_of(fmt.name).groups] = 0.5  # a group without any is given others (`quantize_rows`)
    yield sparse
