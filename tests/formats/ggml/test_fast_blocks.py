"""What compiled quantizers rest on: blocks laid side by side, and levels that are found without ggml's search."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from planner.compiled.lanes import LANES, load, store
from planner.formats.ggml.fast import iq4
from planner.formats.ggml.fast.blocks import apart, beside


@numba.njit
def laid(source, starts, count, out):
    beside(source, starts, count, out)


@numba.njit
def put_apart(stage, size, begin, count, out):
    apart(stage, size, begin, count, out)


@numba.njit
def levels(values, found, codes):
    for i in range(0, len(values), LANES):
        store(found, i, iq4._level(load(values, i)))
        store(codes, i, iq4._code(load(values, i)))


def best_index(x):
    """best_index_int8 of ggml-quants.c, in float32."""
    values = iq4._LEVELS
    if x <= values[0]:
        return 0
    if x >= values[-1]:
        return len(values) - 1
    low, high = 0, len(values) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if x < values[middle] else (middle, high)
    return high - 1 if x - values[high - 1] < values[high] - x else high


def test_blocks_are_laid_side_by_side():
    source, starts = np.random.default_rng(0).random(900, np.float32), np.arange(LANES) * 53
    out = np.zeros(48 * LANES, np.float32)
    laid(source, starts, 48, out)
    assert np.array_equal(out.reshape(48, LANES), np.stack([source[at : at + 48] for at in starts], axis=1))


@pytest.mark.parametrize("size", [16, 18, 30, 110])
def test_bytes_of_blocks_are_put_where_they_belong(size):
    stage = np.random.default_rng(size).integers(256, size=(-(-size // LANES) * LANES, LANES)).astype(np.uint8)
    out = np.zeros((7, 3 * size), np.uint8)
    put_apart(stage.reshape(-1), size, 16, 21, out)  # the last five of 21 blocks
    assert np.array_equal(out.reshape(21, size)[16:], stage[:size, :5].T)
    assert not out.reshape(21, size)[:16].any()


def test_levels_are_those_of_the_search():
    ties = np.arange(-280, 281, dtype=np.float32) / 2
    near = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    some = np.random.default_rng(1).uniform(-140, 140, 5000)
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-8, 3e38, -3e38]
    values = np.concatenate([ties, *near, some, odd]).astype(np.float32)
    values = np.resize(values, -(-len(values) // LANES) * LANES)
    found, codes = np.zeros(len(values), np.float32), np.zeros(len(values), np.int32)
    levels(values, found, codes)
    expected = np.array([best_index(value) for value in values])
    assert np.array_equal(codes, expected)
    assert np.array_equal(found, iq4._LEVELS[expected])


def test_scales_that_are_tried_lead_a_weight_over_one_middle_at_most():
    middles = iq4._MIDDLES[:-1].astype(float)
    grown = (iq4._LEVELS[0] - iq4._TRIES) / (iq4._LEVELS[0] + iq4._TRIES)
    for side in (middles[middles > 0], -middles[middles < 0][::-1]):
        assert (side[1:] / side[:-1] > grown * 1.05).all()
