"""Our affine quantization against vectors that MLX made (golden/mlx_affine.py), and against its C++ line by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.errors import KernelError
from planner.formats.mlx import AFFINE, dequantize_affine, quantize_affine, round_trip_affine
from planner.formats.registry import round_trip

GOLDEN = np.load(Path(__file__).parents[2] / "golden/mlx-affine.npz")
FORMATS = list(AFFINE)
F = np.float32


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_of_mlx(name, kind):
    rows = GOLDEN[f"{kind}.rows"]
    found = quantize_affine(AFFINE[name], rows)
    assert np.array_equal(found.weights, GOLDEN[f"{kind}.{name}.weights"])
    # a row that both types hold is of neither in particular
    both = (GOLDEN["f16.rows"] == GOLDEN["bf16.rows"]).all(axis=1)
    assert 0 < both.sum() < 3
    for part in ("scales", "biases"):
        assert np.array_equal(getattr(found, part)[~both], GOLDEN[f"{kind}.{name}.{part}"][~both])
        assert np.array_equal(getattr(found, part)[both], GOLDEN[f"bf16.{name}.{part}"][both])
    back = dequantize_affine(AFFINE[name], found).astype(np.float64)
    assert np.array_equal(back.sum(axis=1)[~both], GOLDEN[f"{kind}.{name}.sum"][~both])


def bf16(value):
    bits = int(F(value).view(np.uint32))
    return np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(F)


def group_by_mlx(weights, bits, half):
    """`quantize` of mlx/backend/cpu/quantized.cpp for one group: the packed integer, scale and bias."""
    bins, eps = F((1 << bits) - 1), F(1e-7)
    low, high = min(weights), max(weights)
    mask = abs(low) > abs(high)
    scale = max(F(high - low) / bins, eps)
    scale = scale if mask else -scale
    edge = low if mask else high
    q0 = np.rint(edge / scale)
    bias = F(0)
    if q0 != 0:
        scale, bias = edge / q0, edge
    packed = 0
    for number, weight in enumerate(weights):
        code = min(max(np.rint((weight - bias) / scale), F(0)), bins)
        packed |= int(code) << (number * bits)
    return packed, half(scale), half(bias)


ROWS = arrays(
    np.float16,
    st.tuples(st.integers(1, 3), st.just(128)),
    elements=st.one_of(
        st.floats(-60000, 60000, width=16), st.floats(-0.125, 0.125, width=16), st.sampled_from([0.0, 0.5, -0.5])
    ),
)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.sampled_from(FORMATS), st.booleans())
def test_line_by_line(rows, name, as_bf16):
    fmt, rows = AFFINE[name], rows.astype(F)
    if as_bf16:
        rows = np.array([[bf16(value) for value in row] for row in rows], F)
    found = quantize_affine(fmt, rows)
    assert found.weights.nbytes + 2 * (found.scales.size + found.biases.size) == len(rows) * fmt.row_bytes(128)
    for number, row in enumerate(rows):
        half = bf16 if all(bf16(value) == value for value in row) else lambda value: F(np.float16(value))
        packed = []
        for place, start in enumerate(range(0, 128, fmt.group)):
            integer, scale, bias = group_by_mlx(list(row[start : start + fmt.group]), fmt.bits, half)
            packed += integer.to_bytes(fmt.group * fmt.bits // 8, "little")
            assert found.scales[number, place] == scale
            assert found.biases[number, place] == bias
        assert found.weights[number].tolist() == packed


@settings(deadline=None, max_examples=60)
@given(ROWS, st.sampled_from(FORMATS))
def test_round_trips_without_packing(rows, name):
    fmt, rows = AFFINE[name], rows.astype(F)
    back = round_trip_affine(fmt, rows)
    assert np.array_equal(back, dequantize_affine(fmt, quantize_affine(fmt, rows)))
    assert np.array_equal(back, round_trip(fmt, rows, np.ones(128, F)))  # an imatrix changes nothing
    one_by_one = np.concatenate([round_trip_affine(fmt, rows[i : i + 1]) for i in range(len(rows))])
    assert np.array_equal(back, one_by_one)  # whatever is measured together


def test_float32_weights_are_rounded_as_mlx_lm_converts_them():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((4, 128)).astype(F)
    rounded = np.array([[bf16(value) for value in row] for row in rows], F)
    for fmt in AFFINE.values():
        one, two = quantize_affine(fmt, rows), quantize_affine(fmt, rounded)
        assert np.array_equal(one.weights, two.weights)
        assert np.array_equal(one.scales, two.scales)


def test_more_bits_and_smaller_groups_lose_less():
    rows = (np.random.default_rng(2).standard_normal((64, 256)) * 0.02).astype(np.float16).astype(F)
    error = {name: float(((round_trip_affine(fmt, rows) - rows) ** 2).sum()) for name, fmt in AFFINE.items()}
    for group in (32, 64, 128):
        losses = [error[f"mlx_q{bits}_g{group}"] for bits in (2, 3, 4, 5, 6, 8)]
        assert losses == sorted(losses, reverse=True)
    for bits in (2, 3, 4, 5, 6, 8):
        losses = [error[f"mlx_q{bits}_g{group}"] for group in (128, 64, 32)]
        assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e38])
def test_values_that_cannot_be(value):
    rows = np.zeros((2, 64), F)
    rows[1, 3] = value
    with pytest.raises(KernelError, match="mlx_q4_g64 cannot store"):
        quantize_affine(AFFINE["mlx_q4_g64"], rows)


def test_shapes_that_cannot_be():
    fmt = AFFINE["mlx_q4_g64"]
    for rows in (np.zeros((2, 96), F), np.zeros((2, 64)), np.zeros(64, F)):
        with pytest.raises(ValueError, match="a multiple of 64"):
            quantize_affine(fmt, rows)
    assert round_trip_affine(fmt, np.zeros((0, 64), F)).shape == (0, 64)
