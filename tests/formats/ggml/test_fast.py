"""Compiled quantizers against ggml's: the same bytes from whatever weights, and ggml's where they would not be."""

from __future__ import annotations

import hashlib
import threading
from functools import cache

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.compiled import loading
from planner.compiled.lanes import LANES, from_half, half, load, nearest, store
from planner.formats.ggml import fast, formats, quantize_by_ggml, quantize_rows
from planner.formats.ggml.fast import halves as of_halves
from planner.formats.ggml.fast.agreement import (
    BY_GGML,
    agrees,
    agrees_unasked,
    awkward_rows,
    awkward_weights,
    bearable,
    scattered,
)
from planner.formats.ggml.reference import dequantize_by_ggml

# of lattice types those whose tables ggml builds in a moment: for the others there are digests of what it made
EACH = pytest.mark.parametrize("name", [name for name in sorted(fast.MODULES) if not name.startswith(("iq1", "iq2"))])
FEW = settings(max_examples=12, deadline=None)
NONE = np.empty(0, np.float32)


quantizer = cache(lambda name: fast.quantizer(formats()[name]))


def ours(name, rows, weights):
    fmt, function = formats()[name], quantizer(name)
    assert function is not None, f"{name} does not agree with ggml"
    out = np.full((len(rows), fmt.row_bytes(rows.shape[1])), 0xAA, np.uint8)
    function(rows, NONE if weights is None else weights, out)
    return out


def choices_of_weights(name, seed, wide):
    found = list(awkward_weights(np.random.default_rng(seed), wide, formats()[name]))
    return [*found, None] if name in fast.WITHOUT_IMATRIX else found


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has quantized nothing yet."""
    monkeypatch.setattr(loading, "_spent", {})
    monkeypatch.setattr(loading, "_found", {})
    monkeypatch.delenv("PLANNER_KERNELS", raising=False)


@EACH
@FEW
@given(count=st.integers(1, 2 * LANES + 1), blocks=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_awkward_blocks_have_the_bytes_of_ggml(name, count, blocks, seed):
    wide = formats()[name].block * blocks
    rows = bearable(formats()[name], awkward_rows(np.random.default_rng(seed), count, wide))
    choices = choices_of_weights(name, seed, wide)
    weights = choices[seed % len(choices)]
    assert np.array_equal(ours(name, rows, weights), quantize_by_ggml(formats()[name], rows, weights))


@EACH
@FEW
@given(data=st.data())
def test_any_floats_have_the_bytes_of_ggml(name, data):
    wide = formats()[name].block
    rows = data.draw(arrays(np.float32, (2, wide), elements=st.floats(-(2.0**43), 2.0**43, width=32)))
    rows = bearable(formats()[name], rows)
    for weights in choices_of_weights(name, 1, wide):
        assert np.array_equal(ours(name, rows, weights), quantize_by_ggml(formats()[name], rows, weights))


def test_made_up_rows_are_awkward():
    rows = awkward_rows(np.random.default_rng(0), 200, 512)
    assert np.isfinite(rows).all()
    blocks = rows.reshape(-1, 32)
    subnormal = (np.abs(blocks) < np.finfo(np.float32).tiny) & (blocks != 0)
    assert subnormal.all(axis=1).sum() > 50
    assert (np.abs(blocks) > 1e12).any()
    assert (blocks == 0).all(axis=1).sum() > 50
    assert ((blocks == blocks[:, :1]) & (blocks != 0)).all(axis=1).sum() > 50
    assert ((blocks != 0).sum(axis=1) == 1).sum() > 50
    assert (np.signbit(blocks) & (blocks == 0)).any()


def test_one_byte_in_a_hundred_thousand_is_seen():
    fmt = formats()["q4_K"]
    function = quantizer("q4_K")

    def nearly(rows, weights, out):
        function(rows, weights, out)
        out[len(out) // 2, 17] ^= 1

    assert agrees(fmt, function, True)
    assert not agrees(fmt, nearly, False)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("size", [1, 1 << 16])
def test_floats_of_halves_have_the_bits_of_ggml(size, monkeypatch):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2 * size)
    fmt = formats()["f16"]
    monkeypatch.setenv("PLANNER_KERNELS", "compiled")
    found = fast.dequantize(fmt, every, size)
    assert loading._found["halves"] is not None
    assert np.array_equal(found.view(np.uint32), dequantize_by_ggml(fmt, every, size).view(np.uint32))
    odd = np.concatenate([[0], every.reshape(-1)]).astype(np.uint8)[1:].reshape(every.shape)
    assert np.array_equal(fast.dequantize(fmt, odd, size).view(np.uint32), found.view(np.uint32))


@pytest.mark.usefixtures("fresh")
def test_halves_are_widened_by_ours_when_it_pays(monkeypatch):
    fmt, data = formats()["f16"], np.zeros((1, 512), np.uint8)
    fast.dequantize(fmt, data, 256)
    assert not loading._found
    assert loading._spent["halves"] > 0
    monkeypatch.setattr(loading, "_PAYS", 0)
    monkeypatch.setenv("PLANNER_KERNELS", "ggml")
    fast.dequantize(fmt, data, 256)
    assert not loading._found
    monkeypatch.delenv("PLANNER_KERNELS")
    fast.dequantize(fmt, data, 256)
    assert list(loading._found) == ["halves"]


@pytest.mark.parametrize("breaks", [0x0001, 0x3C00, 0xFC00, 0x7E01])
def test_one_half_that_differs_is_seen(breaks, monkeypatch):
    right = of_halves.widen

    def nearly(given, out):
        right(given, out)
        out.view(np.uint32)[given == breaks] ^= 1

    monkeypatch.setattr(of_halves, "widen", nearly)
    assert fast.widener(formats()["f16"]) is None


@pytest.mark.usefixtures("fresh")
def test_ggml_begins_and_ours_takes_over(monkeypatch):
    fmt, rows = formats()["q4_K"], np.ones((4, 256), np.float32)
    fast.quantize(fmt, rows, None)
    assert not loading._found
    assert 0 < loading._spent["q4_K"] < loading._PAYS
    monkeypatch.setattr(loading, "_PAYS", loading._spent["q4_K"])
    fast.quantize(formats()["f16"], rows, None)
    assert not loading._found
    fast.quantize(fmt, rows, None)
    assert list(loading._found) == ["q4_K"]
    before = dict(loading._spent)
    fast.quantize(fmt, rows, None)
    assert loading._spent == before
    monkeypatch.setenv("PLANNER_KERNELS", "compiled")
    fast.quantize(formats()["q5_K"], rows, None)
    assert list(loading._found) == ["q4_K", "q5_K"]
    monkeypatch.setenv("PLANNER_KERNELS", "ggml")
    fast.quantize(fmt, rows, None)
    assert loading._spent["q4_K"] > before["q4_K"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("wish", ["ggml", "compiled"])
def test_rows_have_the_same_bytes_either_way(wish, monkeypatch):
    monkeypatch.setenv("PLANNER_KERNELS", wish)
    fmt, random = formats()["q4_K"], np.random.default_rng(3)
    rows = awkward_rows(random, 5, 512)
    weights = np.where(np.arange(512) < 256, 0, random.random(512)).astype(np.float32)
    counted = np.where(weights == 0, np.float32(1), weights)  # where a super-block has none
    assert np.array_equal(quantize_rows(fmt, rows, weights), quantize_by_ggml(fmt, rows, counted))
    assert quantize_rows(fmt, rows[:0], weights).shape == (0, fmt.row_bytes(512))


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_ggml_does_it(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(fast.importlib, "import_module", missing)
    monkeypatch.setenv("PLANNER_KERNELS", "compiled")
    fmt, rows = formats()["q4_K"], np.ones((4, 256), np.float32)
    assert fast.quantizer(fmt) is None
    assert np.array_equal(quantize_rows(fmt, rows), quantize_by_ggml(fmt, rows))


@pytest.mark.usefixtures("fresh")
def test_nobody_waits_for_the_compiler(monkeypatch):
    entered, done = threading.Event(), threading.Event()

    def slow(_):
        entered.set()
        assert done.wait(60)

    monkeypatch.setattr(fast, "quantizer", slow)
    monkeypatch.setattr(loading, "_PAYS", 0)
    fmt, rows = formats()["q4_K"], np.ones((4, 256), np.float32)
    first = threading.Thread(target=fast.quantize, args=(fmt, rows, None))
    first.start()
    assert entered.wait(60)
    assert np.array_equal(fast.quantize(fmt, rows, None), quantize_by_ggml(fmt, rows))
    assert fmt.name not in loading._found
    done.set()
    first.join()
    assert fmt.name in loading._found


@numba.njit
def halves(values, words, back, integers):
    for i in range(0, len(values), LANES):
        store(words, i, half(load(values, i)))
        store(back, i, from_half(load(words, i)))
        store(integers, i, nearest(load(values, i)))


def test_half_precision_and_integers_are_those_of_c():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    between = (every[:-1] + every[1:]) / 2  # ties
    normal = np.random.default_rng(5).standard_normal(4096)
    edges = [np.inf, -np.inf, 70000, 65520, 65519.996]
    values = np.concatenate([every, between, np.nextafter(between, np.float32(np.inf)), normal, normal * 1e-6, edges])
    values = np.resize(values.astype(np.float32), -(-len(values) // LANES) * LANES)
    words, back, integers = np.zeros(len(values), np.int32), np.zeros_like(values), np.zeros(len(values), np.int32)
    halves(values, words, back, integers)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(words.astype(np.uint16), expected.view(np.uint16))
    assert np.array_equal(back.view(np.uint32), expected.astype(np.float32).view(np.uint32))
    bits = (values + np.float32(12582912)).view(np.int32)
    assert np.array_equal(integers, (bits & 0x007FFFFF) - 0x00400000)


@pytest.mark.parametrize("name", BY_GGML)
def test_types_with_slow_tables_have_the_bytes_of_ggml(name):
    rows, weights = scattered()
    assert hashlib.sha256(ours(name, rows, weights)).hexdigest() == BY_GGML[name]


def test_a_quantizer_that_is_off_is_found_without_asking(monkeypatch):
    fmt = formats()["iq3_s"]
    function = quantizer("iq3_s")
    assert agrees_unasked(fmt, function)

    def off(rows, weights, out):
        function(rows, weights, out)
        out[-1, -1] ^= 1

    assert not agrees_unasked(fmt, off)
