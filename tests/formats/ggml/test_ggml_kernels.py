"""The kernels behind their checks: nothing that they cannot take reaches them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.errors import KernelError
from planner.formats.ggml import (
    dequantize_rows,
    formats,
    has_tables,
    prepare_tables,
    quantize_rows,
    rows_are_valid,
    select_formats,
    tables_ready,
)
from planner.formats.ggml.library import load

CHEAP = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_xs", "iq4_nl", "tq2_0",
         "mxfp4", "f16", "bf16", "f32", "iq3_xxs", "iq3_s")  # fmt: skip
FAST = settings(max_examples=20, deadline=None)


def normal(seed, *shape, scale=0.05):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def there_and_back(name, rows, weights=None):
    return dequantize_rows(formats()[name], quantize_rows(formats()[name], rows, weights), rows.shape[1])


def error(name, rows, weights=None):
    return float(np.square(there_and_back(name, rows, weights) - rows).sum() / np.square(rows).sum())


# which gguf can decode, too
@pytest.mark.parametrize("name", [n for n in CHEAP if n not in ("mxfp4", "f32")])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gguf_package_decodes_the_same(name, weighted):
    rows = normal(1, 5, 512)
    weights = np.random.default_rng(2).lognormal(0, 2, 512).astype(np.float32) if weighted else None
    data = quantize_rows(formats()[name], rows, weights)
    assert data.shape == (5, formats()[name].row_bytes(512))
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name.upper()])
    assert np.allclose(dequantize_rows(formats()[name], data, 512), theirs, rtol=1e-6, atol=0)
    assert rows_are_valid(formats()[name], data)


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0", "f16", "bf16", "f32"])
@FAST
@given(data=st.data())
def test_what_is_in_a_format_stays_as_it_is(name, data):
    rows = data.draw(arrays(np.float32, (2, 64), elements=st.floats(-100, 100, width=32)))
    fmt = formats()[name]
    once = quantize_rows(fmt, rows)
    back = dequantize_rows(fmt, once, 64)
    # values, not bits: a block of zeros has more than one spelling
    assert np.allclose(there_and_back(name, back), back, rtol=2e-3 if fmt.quantized else 0, atol=0)
    if name == "f32":
        assert np.array_equal(back, rows)
    if name in ("f16", "bf16"):
        assert np.array_equal(quantize_rows(fmt, back), once)


def test_floats_are_rounded_as_numpy_rounds():
    rows = normal(3, 7, 96, scale=3)
    assert np.array_equal(quantize_rows(formats()["f16"], rows).view(np.float16), rows.astype(np.float16))
    back = there_and_back("bf16", rows)
    assert np.abs(back - rows).max() <= np.abs(rows).max() / 256


@pytest.mark.parametrize("weighted", [False, True])
def test_more_bits_lose_less(weighted):
    rows = normal(4, 64, 512)
    weights = np.random.default_rng(5).lognormal(0, 1, 512).astype(np.float32) if weighted else None
    for family in (("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q8_0", "f16"), ("q4_0", "q5_0", "q8_0", "bf16", "f32")):
        errors = [error(name, rows, weights) for name in family]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] < 0.2
    assert error("f32", rows) == 0


@pytest.mark.parametrize("name", ["q2_K", "q3_K", "q4_K", "iq4_xs", "iq4_nl", "q4_0", "q4_1", "iq3_xxs"])
def test_an_imatrix_moves_the_error_to_where_it_matters_less(name):
    rows = normal(6, 64, 512)
    weights = np.ones(512, np.float32)
    weights[::4] = 50
    plain, weighted = (np.square(there_and_back(name, rows, w) - rows)[:, ::4].sum() for w in (None, weights))
    assert weighted < plain


def test_rows_are_independent():
    rows = normal(7, 16, 256)
    for name in CHEAP:
        whole = quantize_rows(formats()[name], rows)
        assert np.array_equal(quantize_rows(formats()[name], rows[3:5].copy()), whole[3:5])


def test_no_rows_at_all():
    for fmt in map(formats().__getitem__, CHEAP):
        nothing = quantize_rows(fmt, np.zeros((0, 256), np.float32))
        assert nothing.shape == (0, fmt.row_bytes(256))
        assert dequantize_rows(fmt, nothing, 256).shape == (0, 256)
        assert rows_are_valid(fmt, nothing)


def test_zeros_stay_zeros():
    for name in CHEAP:
        assert not there_and_back(name, np.zeros((3, 256), np.float32)).any()


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 256), np.float64),
        np.zeros((2, 256), np.float16),
        np.zeros(256, np.float32),
        np.zeros((2, 2, 256), np.float32),
        np.zeros((2, 512), np.float32)[:, ::2],
        np.zeros((256, 2), np.float32).T,
        np.zeros((2, 255), np.float32),
        np.zeros((2, 128), np.float32),
        np.zeros((2, 0), np.float32),
    ],
)
def test_rows_that_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        quantize_rows(formats()["q4_K"], rows)


@pytest.mark.parametrize(
    "weights",
    [
        np.ones(256),
        np.ones(255, np.float32),
        np.ones((1, 256), np.float32),
        np.ones(512, np.float32)[::2],
        np.full(256, np.nan, np.float32),
        np.full(256, np.inf, np.float32),
        np.full(256, -1, np.float32),
    ],
)
@pytest.mark.parametrize("name", ["q4_K", "q8_0", "f16"])
def test_weights_that_are_refused(weights, name):
    with pytest.raises(ValueError, match="imatrix values"):
        quantize_rows(formats()[name], np.zeros((2, 256), np.float32), weights)


@pytest.mark.parametrize("name", ["iq1_s", "iq2_xxs", "iq2_xs"])
def test_formats_that_need_an_imatrix(name):
    with pytest.raises(ValueError, match="without an imatrix"):
        quantize_rows(formats()[name], np.zeros((2, 256), np.float32))


@pytest.mark.parametrize("name", ["q8_K", "q8_1", "i8"])
def test_types_that_are_not_for_weights(name):
    with pytest.raises(ValueError, match="not a format"):
        quantize_rows(formats()[name], np.zeros((2, 256), np.float32))


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (2, 255)])
def test_no_numbers(name, bad, where):
    rows = normal(8, 3, 256)
    rows[where] = bad
    with pytest.raises(KernelError, match="NaN or infinite") as caught:
        quantize_rows(formats()[name], rows)
    assert caught.value.remedy


@pytest.mark.parametrize("name", [n for n in CHEAP if formats()[n].quantized])
def test_numbers_whose_squares_overflow(name):
    rows = normal(9, 3, 256)
    rows[1, 1] = 1e18
    with pytest.raises(KernelError, match="overflow"):
        quantize_rows(formats()[name], rows)
    with pytest.raises(KernelError, match=r"imatrix values to 1e\+37"):
        quantize_rows(formats()[name], normal(9, 3, 256), np.full(256, 1e37, np.float32))
    assert np.isfinite(there_and_back("f32", rows)).all()


@FAST
@given(
    name=st.sampled_from([n for n in CHEAP if n not in ("iq3_xxs", "iq3_s")]),
    rows=arrays(np.float32, (2, 256), elements=st.floats(-1e6, 1e6, width=32)),
    weights=arrays(np.float32, 256, elements=st.floats(0, 1e6, width=32)),
)
def test_whatever_is_let_through_comes_back(name, rows, weights):
    data = quantize_rows(formats()[name], rows, weights)
    assert data.shape == (2, formats()[name].row_bytes(256))
    if rows_are_valid(formats()[name], data):
        assert not np.isnan(dequantize_rows(formats()[name], data, 256)).any()


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 143), np.uint8),
        np.zeros((2, 144), np.int8),
        np.zeros(144, np.uint8),
        np.zeros((2, 288), np.uint8),
    ],
)
def test_bytes_that_are_refused(data):
    with pytest.raises(ValueError, match="q4_K data must be"):
        dequantize_rows(formats()["q4_K"], data, 256)
    with pytest.raises(ValueError, match="no whole number"):
        dequantize_rows(formats()["q4_K"], data, 100)


def test_bytes_that_lie_apart():
    data = quantize_rows(formats()["q4_0"], normal(10, 8, 64))
    assert np.array_equal(
        dequantize_rows(formats()["q4_0"], data[::2], 64), dequantize_rows(formats()["q4_0"], data, 64)[::2]
    )


def test_broken_scales_are_noticed():
    data = quantize_rows(formats()["q8_0"], normal(11, 2, 64))
    assert rows_are_valid(formats()["q8_0"], data)
    data[1, :2] = (0xFF, 0x7E)  # the scale: NaN
    assert not rows_are_valid(formats()["q8_0"], data)


def test_tables(monkeypatch):
    assert {entry.name for entry in select_formats("all") if has_tables(entry)} == {
        "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s",
    }  # fmt: skip
    ours = select_formats("all,-iq1_s,-iq1_m")
    prepare_tables(ours)  # none: with this library kernels of our own are used
    assert all(tables_ready(entry) for entry in ours)
    monkeypatch.setenv("PLANNER_KERNELS", "ggml")
    assert tables_ready(formats()["q4_K"])
    prepare_tables((formats()["iq3_xxs"], formats()["q4_K"]))
    assert tables_ready(formats()["iq3_xxs"])


def by_ggml(fmt, rows, weights):
    """What the kernel itself makes of rows, called without what stands between."""
    out = np.zeros((len(rows), fmt.row_bytes(rows.shape[1])), np.uint8)
    data, to, values = (array.ctypes.data for array in (rows, out, weights))
    load().quantize_chunk(fmt.id, data, to, 0, *rows.shape, values)
    return out


QUANTIZED = [name for name in CHEAP if formats()[name].quantized]
SHARING = {"q3_K": 16, "q6_K": 16, "iq4_xs": 32, "iq3_xxs": 32}  # weights of one scale; of other types a block


@pytest.mark.parametrize("name", QUANTIZED)
def test_zeros_are_given_to_the_kernels_as_llama_quantize_gives_them(name):
    rows, fmt = normal(11, 3, 768), formats()[name]
    weights = np.random.default_rng(12).lognormal(0, 2, 768).astype(np.float32)
    share = SHARING.get(name, fmt.block)
    weights[[1, 300, 520]] = 0
    weights[share // 2 : share] = weights[256 : 256 + share - 1] = 0
    assert np.array_equal(quantize_rows(fmt, rows, weights), by_ggml(fmt, rows, weights))


@pytest.mark.parametrize("name", QUANTIZED)
def test_groups_without_weights_are_weighed_as_their_block(name):
    rows, fmt = normal(11, 3, 768), formats()[name]
    weights = np.random.default_rng(12).lognormal(0, 2, 768).astype(np.float32)
    share = SHARING.get(name, fmt.block)
    weights[:share] = weights[256:512] = 0  # a group, a block
    weights[300] = 1e-40  # as good as nothing
    filled = weights.copy()
    filled[:share] = weights[: fmt.block].mean() or 1
    filled[256:512] = 1
    found = quantize_rows(fmt, rows, weights)
    assert rows_are_valid(fmt, found)
    assert np.array_equal(found, by_ggml(fmt, rows, filled))
    # nowhere else does it matter
    third = fmt.row_bytes(256)
    assert np.array_equal(found[:, 2 * third :], by_ggml(fmt, rows, weights)[:, 2 * third :])
    assert error(name, rows, np.zeros(768, np.float32)) == error(name, rows, np.ones(768, np.float32))


@pytest.mark.parametrize("name", QUANTIZED)
@FAST
@given(start=st.integers(0, 47), length=st.integers(1, 48), seed=st.integers(0, 99))
def test_no_stretch_of_zeros_makes_weights_vanish(name, start, length, seed):
    rows = normal(seed, 4, 768)
    weights = np.random.default_rng(seed).lognormal(0, 1, 768).astype(np.float32)
    here = slice(16 * start, 16 * min(start + length, 48))
    weights[here] = 0
    back = there_and_back(name, rows, weights)
    lost = np.square(back - rows)[:, here].sum() / np.square(rows[:, here]).sum()
    assert lost < 0.9 if name == "tq2_0" else lost < 0.3
