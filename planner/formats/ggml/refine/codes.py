"""Rows of codes, taken apart for the kernels and put back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml.refine.fields import Field
from planner.formats.ggml.refine.layouts import Layout, Points, Scale, Table, half_floats

__all__ = ["Choices", "Codes", "State"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]


class Choices(NamedTuple):
    """What the codes of a type mean, in ascending order of levels.

    `levels` f32[k], one apart if `even`, and half of the way from each to the nearest other, `reach` f32[k]; or, of a
    lattice, `points` f32[p, 4 or 8] of which `near` i32[p, m] are the neighbours of each and `ways` f32[p, 4 or 8, m]
    what leads there, and signs, with an even number of minuses where `parity`. `scales` and `offsets` are levels of
    scales and offsets in their units.
    """

    levels: Floats
    reach: Floats
    even: bool
    points: Floats
    near: Numbers
    ways: Floats
    parity: bool
    scales: Floats
    offsets: Floats


class State(NamedTuple):
    """Rows of codes: places among the levels (or points) i32[r, n] (or [r, n / 4 or 8]), the levels themselves
    f32[r, n], half of the way from each to the nearest other, f32[r, n], signs i32[r, n / 8], and of each group of
    weights the place of its scale i32[r, g] and the unit of that f32[r, g], likewise of offsets. What a type does not
    have is empty."""

    places: Numbers
    levels: Floats
    reach: Floats
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
        scales, units = _read(layout.scale, blocks)
        offsets, offset_units = _read(layout.offset, blocks) if layout.offset else (scales[:, :0], units[:, :0])
        self._before = State(*_weights(layout, blocks), scales, units, offsets, offset_units)
        self.state = _in_rows(self._before, len(data))

    @property
    def choices(self) -> Choices:
        """What the codes mean."""
        table, offset = self._layout.table, self._layout.offset
        no_levels, no_points, none_near = np.empty(0, np.float32), np.empty((0, 0), np.float32), _nothing(0)
        no_ways = np.empty((0, 0, 0), np.float32)
        scales, offsets = self._layout.scale.table.levels, offset.table.levels if offset else no_levels
        if isinstance(table, Points):
            return Choices(
                no_levels, no_levels, False, table.points, table.near, table.ways, table.parity, scales, offsets
            )
        return Choices(table.levels, table.reach, table.even, no_points, none_near, no_ways, False, scales, offsets)

    def written(self) -> Bytes:
        """Return the bytes, u8[r, bytes]. Numbers that have not changed keep their bits, of which some types have
        several for the same level."""
        blocks = self._data.reshape(-1, self._block_bytes).copy()
        layout, before = self._layout, self._before
        state = _in_rows(self.state, len(blocks))
        table = layout.table
        if isinstance(table, Points):
            _write(layout.codes, None, blocks, before.places, state.places)
            if table.signs:
                _write(table.signs, None, blocks, before.signs, state.signs)
        else:
            _write(layout.codes, table, blocks, before.places, state.places)
        _write(layout.scale.field, layout.scale.table, blocks, before.scales, state.scales)
        if layout.offset:
            _write(layout.offset.field, layout.offset.table, blocks, before.offsets, state.offsets)
        return blocks.reshape(self._data.shape)


def _weights(layout: Layout, blocks: Bytes) -> tuple[Numbers, Floats, Floats, Numbers]:
    """Return places, levels, reach and signs, each of so many rows as there are blocks."""
    codes, table = layout.codes.read(blocks), layout.table
    if not isinstance(table, Points):
        places = table.places[codes]
        return places, table.levels[places], table.reach[places], _nothing(len(blocks))
    levels = table.points[codes].reshape(len(blocks), -1)
    no_reach = levels[:, :0]
    if table.signs is None:
        return codes, levels, no_reach, _nothing(len(blocks))
    signs = table.signs.read(blocks)
    if table.parity:
        odd = signs ^ signs >> 4
        odd ^= odd >> 2
        signs |= ((odd ^ odd >> 1) & 1) << 7
    minus = signs[:, :, None] >> np.arange(8) & 1
    return codes, np.where(minus.reshape(levels.shape), -levels, levels), no_reach, signs


def _nothing(rows: int) -> Numbers:
    return np.empty((rows, 0), np.int32)


def _write(field: Field, table: Table | None, blocks: Bytes, before: Numbers, after: Numbers) -> None:
    """Write the codes of places, or numbers as they are without a table, into those blocks where any is another."""
    moved = (before != after).any(axis=1)
    some, old, new = blocks[moved], before[moved], after[moved]
    field.write(some, np.where(old == new, field.read(some), new if table is None else table.codes[new]))
    blocks[moved] = some


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
