"""Whether a quantizer gives the bytes of the loaded ggml, on blocks of which every kind is awkward in its own way.

ggml can be built with contracted multiplications, for other processors, or be of another version; then its bytes are
others, and it has to do the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import library
from planner.formats.ggml.formats import Format
from planner.formats.ggml.reference import quantize_by_ggml
from planner.formats.ggml.types import type_of

__all__ = ["BY_GGML", "agrees", "agrees_unasked", "awkward_rows", "awkward_weights", "bearable", "proven", "scattered"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ROWS, _WIDE, _SEED = 48, 512, 20  # some milliseconds of ggml's time
_MOST = np.float32(1e8)  # beyond, the kernels of lattice types may overflow, and end the process
# SHA-256 of ggml libraries with which lattice types were compared beforehand, by benchmarks/kernels.py
_PROVEN = frozenset({"e871a2a305b2f0ed0adc0c8576ac20cea2e5b0792c5656ec4c2581a924077eed"})  # 0.20.2, Linux, x86-64
BY_GGML: Mapping[str, str] = MappingProxyType(
    {
        "iq1_s": "18f2ea62ad5596ec593970021e45b211d98bf0bd6cb3780e21609e8b85e048dd",
        "iq1_m": "162de3d3cc8aeab77748a44b0ff49d616f19561b0eb5208cb75afb4bde0b81df",
        "iq2_xxs": "95cae3261bcb15a565cd0c705eec599cc7fd406639b7ff631ece4ccad270682a",
        "iq2_xs": "75ccf0c3a92a5892197ffce9131f3cbe4bc7c67a5a3cdaf79c742120f642e46b",
        "iq2_s": "32c632031568bac366fe158e3cc46ca3cf12bcfc55707e814b928ab3bd8df98d",
        "iq3_xxs": "e479c22117c72a2665b8e7b8a8f41c13d700be9f89788fd4c57426c88ce4b268",
        "iq3_s": "5f7f5cfe4ca1bf54241c4c7781e9a627a632c48529657e7c4ed279578500dc6d",
    }
)
"""SHA-256 of what those libraries make of `scattered`, by lattice type."""
_RUN = 16  # weights that are of one kind in rows of many


def proven(fmt: Format) -> bool:
    """Return whether it is known what the loaded ggml makes of a lattice type, so that it need not be asked: its answer
    would take its tables, and half a minute."""
    return fmt.name in BY_GGML and library.load().digest in _PROVEN


def agrees_unasked(fmt: Format, function: Callable[[Floats, Floats, Bytes], None]) -> bool:
    """Return whether a quantizer of a `proven` type writes the bytes that ggml is known to."""
    rows, weights = scattered()
    out = np.zeros((len(rows), fmt.row_bytes(rows.shape[1])), np.uint8)
    function(rows, weights, out)
    return hashlib.sha256(out.data).hexdigest() == BY_GGML[fmt.name]


def scattered() -> tuple[Floats, Floats]:
    """Return rows f32[64, 512] and imatrix values f32[512] that look random, of all sizes, and are the same
    everywhere."""
    count, wide = 64, 512
    numbers = np.arange(count * wide + wide, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # golden ratio, 64 bits
    numbers ^= numbers >> np.uint64(29)
    sizes = 2.0 ** -((numbers >> np.uint64(20)) % np.uint64(6)).astype(np.float64)
    values = (((numbers >> np.uint64(40)).astype(np.float64) / 2**23 - 1) * sizes).astype(np.float32)
    return values[wide:].reshape(count, wide), values[:wide] ** 2


def agrees(fmt: Format, function: Callable[[Floats, Floats, Bytes], None], without: bool) -> bool:
    """Return whether a quantizer and ggml write the same bytes with imatrix values, and `without`, if it is to."""
    random = np.random.default_rng(_SEED)
    for weights in (*awkward_weights(random, _WIDE, fmt), *([None] if without else [])):
        rows = bearable(fmt, awkward_rows(random, _ROWS, _WIDE))
        expected = quantize_by_ggml(fmt, rows, weights)
        out = np.zeros_like(expected)
        function(rows, np.empty(0, np.float32) if weights is None else weights, out)
        if not np.array_equal(out, expected):
            return False
    return True


def bearable(fmt: Format, rows: Floats) -> Floats:
    """Return rows without weights that would be too large for ggml's kernel."""
    return rows if type_of(fmt.name).lattice is None else np.clip(rows, -_MOST, _MOST)


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
