"""Rows of codes, taken apart for the kernels and put back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml.refine.layouts import Layout, Scale, half_floats

__all__ = ["Choices", "Codes", "State"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]


class Choices(NamedTuple):
    """What the codes of a type mean, in ascending order of levels.

    `levels` f32[k], one apart if `even`; or, of a lattice, `points` f32[p, 4 or 8] of which `near` i32[p, m] are the
    neighbours of each, and signs, with an even number of minuses where `parity`. `scales` and `offsets` are levels of
    scales and offsets in their units.
    """

    levels: Floats
    even: bool
    points: Floats
    near: Numbers
    parity: bool
    scales: Floats
    offsets: Floats


class State(NamedTuple):
    """Rows of codes: places among the levels (or points) i32[r, n] (or [r, n / 4 or 8]), the levels themselves
    f32[r, n], signs i32[r, n / 8], and of each group of weights the place of its scale i32[r, g] and the unit of that
    f32[r, g], likewise of offsets. What a type does not have is empty."""

    places: Numbers
    levels: Floats
    signs: Numbers
    scales: Numbers
    units: Floats
    offsets: Numbers
    offset_units: Floats


class Codes:
    """Codes of rows: `state` is for the kernels to change, `written` gives the bytes that it then stands for.

    `data` is u8[r, bytes], whole blocks of the layout's type.
    """

    def __init__(self, layout: Layout, data: Bytes, block_bytes: int) -> None:
        self._layout, self._data, self._block_bytes = layout, data, block_bytes
        blocks = data.reshape(-1, block_bytes)
        places = layout.table.places[layout.codes.read(blocks)]
        scales, units = _read(layout.scale, blocks)
        offsets, offset_units = _read(layout.offset, blocks) if layout.offset else (scales[:, :0], units[:, :0])
        self._before = State(
            places, layout.table.levels[places], np.empty((len(blocks), 0), np.int32),
            scales, units, offsets, offset_units,
        )  # fmt: skip
        self.state = _in_rows(self._before, len(data))

    @property
    def choices(self) -> Choices:
        """What the codes mean."""
        layout = self._layout
        return Choices(
            layout.table.levels, layout.table.even, np.empty((0, 0), np.float32), np.empty((0, 0), np.int32), False,
            layout.scale.table.levels, layout.offset.table.levels if layout.offset else np.empty(0, np.float32),
        )  # fmt: skip

    def written(self) -> Bytes:
        """Return the bytes, u8[r, bytes]. Numbers that have not changed keep their bits, of which some types have
        several for the same level."""
        blocks = self._data.reshape(-1, self._block_bytes).copy()
        layout, before = self._layout, self._before
        state = _in_rows(self.state, len(blocks))
        numbers = [(layout.codes, layout.table, before.places, state.places)]
        numbers.append((layout.scale.field, layout.scale.table, before.scales, state.scales))
        if layout.offset:
            numbers.append((layout.offset.field, layout.offset.table, before.offsets, state.offsets))
        for field, table, old, new in numbers:
            moved = (old != new).any(axis=1)
            some = blocks[moved]
            field.write(some, np.where(old == new, field.read(blocks), table.codes[new])[moved])
            blocks[moved] = some
        return blocks.reshape(self._data.shape)


def _in_rows(state: State, rows: int) -> State:
    """Return a copy whose arrays have so many rows."""
    parts: list[NDArray[Any]] = [part.reshape(rows, -1).copy() for part in state]
    return State(*parts)


def _read(scale: Scale, blocks: Bytes) -> tuple[Numbers, Floats]:
    """Return places of the numbers among their levels, i32[b, g], and the unit of each, f32[b, g]."""
    places = scale.table.places[scale.field.read(blocks)]
    units = np.full(places.shape, scale.sign, np.float32)
    if scale.unit is not None:
        units *= half_floats(scale.unit.read(blocks))
    return places, units
