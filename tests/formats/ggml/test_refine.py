"""Codes refined against covariances: what bytes mean, and that nothing gets worse, by measures of our own."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.compiled.lanes import LANES
from planner.formats.ggml import dequantize_rows, formats, quantize_rows
from planner.formats.ggml.refine import Metric, can_refine, kernels, layouts, products, refine_rows
from planner.formats.ggml.refine.codes import Codes
from planner.formats.ggml.refine.lattices import LATTICES
from planner.formats.ggml.refine.layouts import LAYOUTS

ALL = sorted([*LAYOUTS, *LATTICES])
# iq1_s and iq2_s take ggml many seconds of tables
QUICK = [name for name in ALL if name not in ("iq1_s", "iq1_m", "iq2_s", "iq2_xs", "iq2_xxs")]
WIDTH = 256


def layout(name):
    return (LAYOUTS.get(name) or LATTICES[name])()


def weights(seed, rows, width=WIDTH):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, width)) * rng.gamma(2, 0.02, (rows, 1))).astype(np.float32)


def covariance(seed, width=WIDTH, *, massive=True):
    """Activations with a few common directions, a mean, and channels that are far larger than the others."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((6, width)) * rng.gamma(1, 1, (6, 1))
    activations = (
        rng.standard_normal((400, 6)) @ common + rng.standard_normal((400, width)) + rng.standard_normal(width)
    )
    if massive:
        activations[:, rng.integers(0, width, 2)] *= 50
    return (activations.T @ activations / 400).astype(np.float32)


def errors(fmt, data, rows, matrix):
    """d H dᵀ of every row, in float64."""
    d = dequantize_rows(fmt, data, rows.shape[1]).astype(np.float64) - rows
    return np.einsum("ri,ij,rj->r", d, matrix.astype(np.float64), d, optimize=True)


def as_real(name, seed=0, rows=6):
    """Bytes that the kernel writes; or, as its tables take too long, bytes of random codes with small scales."""
    fmt = formats()[name]
    if name in QUICK:
        return quantize_rows(fmt, weights(seed, rows), np.diag(covariance(seed)).copy())
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, fmt.block_bytes)).astype(np.uint8)
    unit = layout(name).scale.unit
    half = np.float16(0.003).view(np.uint16)
    unit.write(blocks, np.full((rows, 1), half, np.int32))
    return blocks.reshape(rows, -1)


def test_all_types_that_weights_can_be_quantized_to():
    """All but those that no model has: q1_0 and q2_0 have one sign or two bits and nothing to choose."""
    found = {name for name, fmt in formats().items() if fmt.quantized and fmt.for_weights and can_refine(fmt)}
    assert found == set(ALL)
    assert {name for name, fmt in formats().items() if fmt.quantized and fmt.for_weights} - found <= {"q1_0", "q2_0"}


@pytest.mark.parametrize("name", ALL)
def test_codes_and_scales_mean_what_the_library_says(name):
    fmt, own = formats()[name], layout(name)
    data = as_real(name)
    state = Codes(own, data, fmt.block_bytes).state
    scales = own.scale.table.levels[state.scales] * state.units
    found = state.levels * scales.repeat(own.group, axis=1)
    if own.offset:
        found += (own.offset.table.levels[state.offsets] * state.offset_units).repeat(own.group, axis=1)
    expected = dequantize_rows(fmt, data, WIDTH)
    assert np.abs(expected).max() > 0
    # q4_K and its like multiply and subtract in one rounding on some machines, and in two on others
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7 * np.abs(scales).max() * 64)


@pytest.mark.parametrize("name", ALL)
def test_bytes_of_any_kind_come_back(name):
    fmt, own = formats()[name], layout(name)
    data = np.random.default_rng(3).integers(0, 256, (8, fmt.row_bytes(WIDTH))).astype(np.uint8)
    with np.errstate(invalid="ignore"):  # scales that are NaN
        assert np.array_equal(Codes(own, data, fmt.block_bytes).written(), data)
    expected = dequantize_rows(fmt, data, WIDTH)
    blocks = data.reshape(-1, fmt.block_bytes).copy()
    fields = [
        own.codes,
        own.scale.field,
        own.scale.unit,
        own.offset and own.offset.field,
        own.offset and own.offset.unit,
    ]
    for field in filter(None, fields):
        numbers = field.read(blocks)
        assert numbers.shape == (len(blocks), field.count)
        field.write(blocks, numbers)
    again = dequantize_rows(fmt, blocks.reshape(data.shape), WIDTH)
    assert np.array_equal(again.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_is_read(name):
    """Every field alone: numbers that were put in come out again, and nothing else has changed."""
    fmt, own = formats()[name], layout(name)
    rng = np.random.default_rng(5)
    fields = {"codes": own.codes, "scales": own.scale.field}
    if own.offset:
        fields["offsets"] = own.offset.field
    for this, field in fields.items():
        blocks = rng.integers(0, 256, (32, fmt.block_bytes)).astype(np.uint8)
        if name == "tq1_0" and this == "codes":
            field.write(blocks, rng.integers(0, 3, (32, field.count)))  # a byte can be more than its digits
        others = {key: other.read(blocks) for key, other in fields.items() if key != this}
        numbers = rng.permuted(field.read(blocks), axis=0)
        if name == "iq1_s" and this == "codes":  # groups of four share a bit
            numbers = field.read(np.roll(blocks, 1, axis=0))
        field.write(blocks, numbers)
        assert np.array_equal(field.read(blocks), numbers)
        for key, values in others.items():
            assert np.array_equal(fields[key].read(blocks), values), key


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=5)
@given(seed=st.integers(0, 10_000), shrinkage=st.sampled_from([0.0, 0.01, 1.0]), massive=st.booleans())
def test_no_row_is_worse(name, seed, shrinkage, massive):
    fmt, rows = formats()[name], weights(seed, 6)
    matrix = covariance(seed + 1, massive=massive)
    data = as_real(name, seed)
    metric = Metric.of(matrix.copy(), shrinkage)
    refined = refine_rows(fmt, rows, data, metric)
    before, after = (errors(fmt, each, rows, metric.matrix) for each in (data, refined))
    assert (after <= before).all()
    assert after.sum() < before.sum()
    twice = refine_rows(fmt, rows, refined, metric)
    assert (errors(fmt, twice, rows, metric.matrix) <= after).all()


@pytest.mark.parametrize("name", ["q4_0", "q4_K", "q2_K", "q3_K", "q8_0", "iq4_nl", "mxfp4", "tq1_0"])
def test_no_other_code_of_a_weight_is_better(name):
    """By trying all of them, once refining again changes nothing."""
    fmt, own, rows = formats()[name], layout(name), weights(11, 2)
    metric = Metric.of(covariance(12), 1.0)
    data = as_real(name, 11, rows=2)
    for _ in range(40):
        data, last = refine_rows(fmt, rows, data, metric, short=True), data
        if np.array_equal(data, last):
            break
    else:
        pytest.fail("it never ends")
    best = errors(fmt, data, rows, metric.matrix)
    blocks = data.reshape(-1, fmt.block_bytes)
    codes = own.codes.read(blocks)
    per_row = len(blocks) // len(rows)
    for weight in range(0, WIDTH, 7):
        block, place = divmod(weight, own.block)
        for code in own.table.codes:
            tried = blocks.copy()
            other = codes.copy()
            other[block::per_row, place] = code
            own.codes.write(tried, other)
            found = errors(fmt, tried.reshape(data.shape), rows, metric.matrix)
            assert (found >= best * (1 - 1e-5)).all(), (weight, code)


def test_all_choices_of_a_small_problem():
    """Where errors of weights do not meet, the best codes are the best of all choices; where two meet, none is better
    that differs in one of them."""
    fmt, own, rows = formats()["q4_0"], layout("q4_0"), weights(21, 3, 32)
    data = quantize_rows(fmt, rows)
    matrix = np.zeros((32, 32), np.float32)
    matrix[3, 3], matrix[8, 8], matrix[3, 8], matrix[8, 3] = 2, 1, 1.2, 1.2
    refined = data
    for _ in range(10):
        refined = refine_rows(fmt, rows, refined, Metric(matrix), short=True)
    best = errors(fmt, refined, rows, matrix)
    codes = own.codes.read(refined)
    every = []
    for one in range(16):
        for two in range(16):
            tried, other = refined.copy(), codes.copy()
            other[:, 3], other[:, 8] = one, two
            own.codes.write(tried, other)
            found = errors(fmt, tried, rows, matrix)
            alone = (codes[:, 3] == one) | (codes[:, 8] == two)
            assert (found[alone] >= best[alone] * (1 - 1e-5) - 1e-12).all()
            every.append(found)
    assert (best <= 4 * np.min(every, axis=0) + 1e-9).all()


@pytest.mark.parametrize("name", ["q2_K", "q3_K", "q4_0", "q4_1", "iq1_s", "iq1_m", "iq2_xxs", "iq3_s", "tq2_0"])
def test_rows_are_as_long_as_they_should_be(name):
    """In their own direction: w H ŵᵀ is w H wᵀ, as near as half floats come to it."""
    fmt, rows = formats()[name], weights(61, 12)
    metric = Metric.of(covariance(62), 1.0)
    data = quantize_rows(fmt, rows, np.diag(metric.matrix).copy())
    own = rows @ metric.matrix.astype(np.float64)

    def length(short):
        found = dequantize_rows(fmt, refine_rows(fmt, rows, data, metric, short=short), WIDTH).astype(np.float64)
        return (own * found).sum(axis=1) / (own * rows).sum(axis=1)

    short, long = length(True), length(False)
    changed = np.abs(long - short) > 1e-6  # the others would have had more error than before
    assert changed.any()
    assert np.abs(short[changed] - 1).min() > 5e-4
    np.testing.assert_allclose(long[changed], 1, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "width"), [("q4_K", 512), ("iq4_nl", 512), ("iq3_s", 512), ("q5_1", 96), ("q4_1", 160), ("q4_0", 32)]
)
def test_rows_do_not_depend_on_their_company(name, width):
    """So neither on how many threads share them."""
    fmt, rows, metric = formats()[name], weights(31, 9, width), Metric.of(covariance(32, width))
    data = quantize_rows(fmt, rows)
    together = refine_rows(fmt, rows, data, metric)
    for begin, end in ((0, 1), (1, 4), (4, 9)):
        alone = refine_rows(fmt, rows[begin:end].copy(), data[begin:end].copy(), metric)
        assert np.array_equal(alone, together[begin:end])
    assert not np.array_equal(together, data)


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "iq4_nl", "q8_0", "tq2_0"])
def test_rows_do_not_depend_on_who_was_first(name):
    """Threads that begin at once may each make the tables of a type, of which the last is kept."""
    fmt, rows, metric = formats()[name], weights(33, 8), Metric.of(covariance(34))
    data = quantize_rows(fmt, rows)
    expected = refine_rows(fmt, rows, data, metric)
    own = layout(name)
    layouts._halves.cache_clear()
    assert own.halves
    assert np.array_equal(refine_rows(fmt, rows, data, metric), expected)


def test_weights_that_nothing_reaches_keep_their_codes():
    fmt, rows = formats()["q5_0"], weights(41, 4)
    matrix = covariance(42)
    matrix[32:64] = 0
    matrix[:, 32:64] = 0
    data = quantize_rows(fmt, rows)
    refined = refine_rows(fmt, rows, data, Metric.of(matrix))
    blocks, before = refined.reshape(4, -1, fmt.block_bytes), data.reshape(4, -1, fmt.block_bytes)
    assert np.array_equal(blocks[:, 1], before[:, 1])
    assert not np.array_equal(blocks, before)
    assert np.array_equal(refine_rows(fmt, rows, data, Metric(np.zeros_like(matrix))), data)


def as_lanes():
    """The lanes of the kernels as arrays of numpy: what each is to do, in numbers of `LANES` at a time."""

    def fused(first, second, more):
        product = np.multiply(first, second, dtype=np.float64)  # exactly
        total = product + more
        rest = total - product
        lost = (product - (total - rest)) + (more - rest)  # exactly (Knuth's)
        even = total.view(np.int64) & 1 == 0
        odd = np.where((lost != 0) & even, np.nextafter(total, np.copysign(np.inf, lost)), total)
        return odd.astype(np.float32)  # from what was rounded to odd, as if it were rounded once

    def total(value):
        while len(value) > 1:
            value = value[: len(value) // 2] + value[len(value) // 2 :]
        return value[0]

    def store(array, at, value):
        array[at : at + LANES] = value

    return {
        "load": lambda array, at: array[at : at + LANES].copy(),
        "store": store,
        "spread": lambda value: np.full(LANES, value, np.float32),
        "fused": fused,
        "total": total,
        "largest": np.max,
        "absolute": np.abs,
        "first": lambda truth, begin: next((lane for lane in range(begin, LANES) if truth[lane]), LANES),
    }


@pytest.mark.parametrize(("rows", "width"), [(1, 32), (3, 160), (4, 128), (9, 203)])
def test_sums_are_those_of_a_plain_loop(rows, width):
    """In the order that the kernels promise, each product and sum rounded once: the same on every machine."""
    rng = np.random.default_rng(51)
    errors_, matrix = rng.standard_normal((rows, width), np.float32), covariance(52, width)
    fused = as_lanes()["fused"]

    def plain(steps, begin, top, end):
        """Products of steps of weights from `begin` on with the columns that do not lie from `top` to `end`."""
        sums = np.zeros((rows, width), np.float32)
        for j in range(steps.shape[1]):
            sums = fused(matrix[begin + j], steps[:, j : j + 1], sums)
        sums[:, top:end] = 0
        return sums

    found = np.empty_like(errors_)
    products.products(errors_, matrix, found)
    expected = np.zeros_like(errors_)
    for begin in range(0, width, 64):
        expected = expected + plain(errors_[:, begin : begin + 64], begin, 0, 0)
    assert np.array_equal(found, expected)
    if width % LANES:  # no type has such rows
        return
    few = np.where(rng.random((rows, width)) < 0.05, errors_, 0)
    for steps in (few, errors_, np.zeros_like(few)):
        for top, end in ((0, 32), (64, min(128, width)), (0, min(160, width))):
            if top >= width:
                continue
            found = errors_.copy()
            products.carry(found, steps[:, top:end], matrix, top)
            expected = errors_.copy()
            for begin in range(top, end, 64):
                expected += plain(steps[:, begin : min(begin + 64, end)], begin, top, end)
            assert np.array_equal(found, expected)
            assert np.array_equal(found[:, top:end], errors_[:, top:end])


_INTERPRETED = f"""
import sys
import numpy as np
from planner.compiled import lanes
LANES = lanes.LANES
{inspect.getsource(as_lanes)}
for name, code in as_lanes().items():
    setattr(lanes, name, code)
from planner.formats.ggml import formats
from planner.formats.ggml.refine import Metric, refine_rows
file = np.load(sys.argv[1])
for name in file["names"]:
    fmt, width = formats()[str(name)], file["rows"].shape[1]
    print(name, refine_rows(fmt, file["rows"], file[str(name)], Metric(file["matrix"]), 2).tobytes().hex())
"""


def test_compiled_loops_do_what_is_written(tmp_path):
    """Bit for bit what Python makes of them, which takes numpy's float32 one by one, and lanes as arrays: so nothing is
    reassociated, widened, or fused but where it is said."""
    names = ["q4_0", "q4_1", "q4_K", "iq4_nl", "iq3_xxs", "iq3_s", "iq1_m"]
    rows, metric = weights(71, 1), Metric.of(covariance(72))
    data = {name: as_real(name, 71, rows=1) for name in names}
    np.savez(tmp_path / "in.npz", names=names, rows=rows, matrix=metric.matrix, **data)
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _INTERPRETED, str(tmp_path / "in.npz")],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = dict(line.split() for line in process.stdout.splitlines())
    for name in names:
        expected = refine_rows(formats()[name], rows, data[name], metric, 2)
        assert found[name] == expected.tobytes().hex(), name
        assert not np.array_equal(expected, data[name])


def test_gains_that_rounding_could_explain_are_looked_at_again(monkeypatch):
    """A kernel that claims too much, and one whose gains are not worth a claim: the row that is worse stays."""
    fmt, rows, metric = formats()["q4_0"], weights(61, 4), Metric.of(covariance(62))
    data = quantize_rows(fmt, rows)
    expected = refine_rows(fmt, rows, data, metric)
    descend = kernels.descend

    def spoils_the_second(state, choices, *rest):
        gains = descend(state, choices, *rest)
        state.places[1] = 15
        gains[1] = 0
        return gains

    monkeypatch.setattr(kernels, "descend", spoils_the_second)
    found = refine_rows(fmt, rows, data, metric)
    assert np.array_equal(found[1], data[1])
    assert np.array_equal(found[[0, 2, 3]], expected[[0, 2, 3]])
