"""Sums over rows: against float64, and the compiled loop against numpy, to the last bit."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.compiled import loading
from planner.errors import ModelError
from planner.formats.ggml.fast.agreement import awkward_rows
from planner.gguf import open_model, read_imatrix
from planner.measure import moments, survey_tensor
from planner.measure import sums as of_rows
from planner.measure.sums import add_up, block_width, compiled_sums, sums
from tests.models import Maker, write_imatrix

compiled = cache(compiled_sums)


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has added up nothing yet."""
    monkeypatch.setattr(loading, "_spent", {})
    monkeypatch.setattr(loading, "_found", {})
    monkeypatch.delenv("PLANNER_KERNELS", raising=False)


def weights(random, length):
    mean, variance = random.standard_normal((2, length)).astype(np.float32)
    return mean, variance**2, random.random(length // block_width(length))


def made(random, count, length, kind):
    if kind == "halves":  # every one that is a number
        return (random.integers(1 << 16, size=(count, length), dtype=np.uint16) & 0xFBFF).view(np.float16)
    return awkward_rows(random, count, length)


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 40),
    blocks=st.integers(1, 20),
    step=st.integers(1, 50),
    kind=st.sampled_from(["halves", "singles"]),
    odd=st.booleans(),
    seed=st.integers(0, 2**32),
)
@example(count=1, blocks=40, step=1, kind="halves", odd=False, seed=0)
@example(count=9, blocks=130, step=4, kind="singles", odd=False, seed=0)
def test_compiled_or_not_they_have_the_same_bits(count, blocks, step, kind, odd, seed):
    random = np.random.default_rng(seed)
    rows = made(random, count, 32 * blocks, kind)
    if odd:  # as in a file without alignment
        rows = np.frombuffer(b"x" + rows.tobytes(), np.uint8)[1:].view(rows.dtype).reshape(rows.shape)
    given = *weights(random, rows.shape[1]), step
    expected, found = ((np.zeros(rows.shape[1]), np.empty((4, count))) for _ in range(2))
    with np.errstate(over="ignore"):
        add_up(rows, *given, *expected)
    assert compiled() is not None
    compiled()(of_rows._compilable(rows), *given, *found)
    for ours, numpys in zip(found, expected, strict=True):
        assert ours.tobytes() == numpys.tobytes()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("wish", ["ggml", "compiled"])
@pytest.mark.parametrize("length", [1, 7, 32, 72, 96, 4096])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_they_are_the_formula(wish, length, kind, monkeypatch):
    monkeypatch.setenv("PLANNER_KERNELS", wish)
    random = np.random.default_rng(length)
    rows = random.standard_normal((37, length)).astype(kind)
    mean, variance, second = weights(random, length)
    columns, (of_mean, of_variance, energy, peaks) = sums(rows, mean, variance, second)
    whole = rows.astype(np.float64)
    blocks = whole.reshape(37, len(second), -1) ** 2
    assert columns == pytest.approx((whole**2).sum(axis=0), rel=1e-6)
    assert of_mean == pytest.approx(whole @ mean, rel=1e-5, abs=1e-5 * length**0.5)
    assert of_variance == pytest.approx(whole**2 @ variance, rel=2e-6)
    assert energy == pytest.approx(blocks.sum(axis=2) @ second, rel=1e-6)
    assert peaks == pytest.approx(blocks.max(axis=2) @ second, rel=1e-6)
    assert ("sums" in loading._found) is (wish == "compiled" and length % 32 == 0)


@pytest.mark.usefixtures("fresh")
def test_the_compiled_loop_is_loaded_once_that_pays(monkeypatch):
    random = np.random.default_rng(0)
    rows = awkward_rows(random, 20, 64)
    given = weights(random, 64)
    with np.errstate(over="ignore"):
        before = sums(rows, *given)
        assert not loading._found
        assert 0 < loading._spent["sums"] < loading._PAYS
        monkeypatch.setattr(loading, "_PAYS", 0)
        after = sums(rows, *given)
    assert loading._found["sums"] is not None
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_loop_that_differs_is_not_used(monkeypatch):
    from planner.measure import compiled_sums as module

    real = module.add_up

    def nearly(*given):
        real(*given)
        given[-1][3, 5] = np.nextafter(given[-1][3, 5], np.inf)

    assert compiled_sums() is real
    monkeypatch.setattr(module, "add_up", nearly)
    assert compiled_sums() is None


def experts(tmp_path, kind, length):
    """A model whose experts' inputs have massive channels, two of them in one block, and of its imatrix."""
    maker = Maker()
    maker.pairs = {"block_count": 1, "embedding_length": 64, "attention.head_count": 1}
    maker.matrix("token_embd", 64, 64)
    maker.arrays["blk.0.ffn_down_exps.weight"] = (
        np.random.default_rng(3).standard_normal((3, 70, length)) * 0.1
    ).astype(kind)
    path = maker.write(tmp_path / "model.gguf")

    def strong(_, second, means):
        second[1, [3, 9]], means[1, [3, 9]] = 1e5, 300
        second[2, -1], means[2, -1] = 1e5, -200

    return path, read_imatrix(write_imatrix(path, tmp_path / "x", change=strong))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("length", [96, 40])
def test_surveys_have_the_same_bits_whoever_adds_up(kind, length, tmp_path, monkeypatch):
    path, imatrix = experts(tmp_path, kind, length)
    found = []
    with open_model(path) as model:
        tensor = model["blk.0.ffn_down_exps.weight"]
        for wish in ("ggml", "compiled"):
            monkeypatch.setenv("PLANNER_KERNELS", wish)
            found.append(survey_tensor(model, tensor, moments(tensor, imatrix), find_massive=True))
        rows = model.rows(tensor).reshape(3, 70, length).astype(np.float64)
    first, second = found
    assert np.argwhere(first.massive).tolist() == [[1, 3], [1, 9], [2, length - 1]]
    for name in ("out_mean", "out_var", "columns", "massive_energy", "expected_error", "expected_massive_error"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    known, width = first.moments, block_width(length)
    usual, heavy = (
        np.where(chosen, known.second, 0.0).reshape(3, 1, -1, width).mean(axis=3)
        for chosen in (~first.massive, first.massive)
    )
    blocks, without = (
        (rows * keep[:, None]).reshape(3, 70, -1, width) ** 2 for keep in (first.massive | True, ~first.massive)
    )
    expected = np.stack([(without.sum(axis=3) * usual).sum(axis=2), (blocks.max(axis=3) * usual).sum(axis=2)])
    assert first.expected_error == pytest.approx(expected, rel=1e-5)
    assert first.expected_massive_error == pytest.approx((blocks.sum(axis=3) * heavy).sum(axis=2), rel=1e-5)
    mean = np.einsum("eij,ej->ei", rows, known.mean * ~first.massive)
    assert first.out_mean == pytest.approx(mean, rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("wish", ["ggml", "compiled"])
@pytest.mark.parametrize(
    ("bad", "kind"), [(np.nan, np.float16), (-np.inf, np.float16), (np.nan, np.float32), (1e25, np.float32)]
)
def test_weights_that_are_no_numbers_are_found(wish, bad, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANNER_KERNELS", wish)
    maker = Maker()
    maker.pairs = {"block_count": 1, "embedding_length": 64, "attention.head_count": 1}
    maker.matrix("token_embd", 64, 64, dtype=kind)
    maker.arrays["token_embd.weight"][63, 40] = bad
    with open_model(maker.write(tmp_path / "model.gguf")) as model:
        tensor = model["token_embd.weight"]
        with pytest.raises(ModelError, match="holds NaN or infinite weights"):
            survey_tensor(model, tensor, moments(tensor, None), find_massive=False)
