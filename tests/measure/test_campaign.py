"""Nothing stale is used, nothing valid is thrown away, nothing is measured twice."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

from planner.errors import ImatrixError, ModelError, UsageError
from planner.formats import families as families_module
from planner.formats.ggml import formats, select_formats
from planner.formats.registry import round_trip
from planner.gguf import open_model, read_imatrix, requires_imatrix, why_left_alone
from planner.gguf.legacy import legacy_bytes
from planner.measure import Settings, loop
from planner.measure import campaign as campaign_module
from planner.measure.campaign import Campaign
from state import StateForeign, Store
from tests.models import CHEAP, FEW, MODELS, dense, experts, write_imatrix

FORMATS = select_formats(FEW)


@pytest.fixture
def model(tmp_path):
    return dense(width=256, inner=512, vocabulary=96, blocks=3).write(tmp_path / "model.gguf")


@pytest.fixture
def matrix(model, tmp_path):
    return write_imatrix(model, tmp_path / "x.imatrix")


@pytest.fixture
def kernel_calls(monkeypatch):
    """How many rows went through the kernels, by tensor and format."""
    calls: Counter[tuple[str, str]] = Counter()
    real = loop.row_errors

    def count(survey, fmt, matrix, rows):
        calls[survey.tensor.name, fmt.name] += len(rows)
        return real(survey, fmt, matrix, rows)

    monkeypatch.setattr(loop, "row_errors", count)
    return calls


def go(model, imatrix, state, *, chosen=FORMATS, settings=None, threads=2, steps=None, **options):
    """Measure, giving up after `steps` steps; returns the steps."""
    with open_model(model) as opened, Store.open(state, create=True) as store:
        matrix = read_imatrix(imatrix) if imatrix else None
        run = Campaign(opened, matrix, store, chosen, settings or Settings(), **options).run(threads)
        seen = []
        for step in run:
            seen.append(step)
            if len(seen) == steps:
                break
        run.close()
        return seen


def measurements(state, *, selected=False):
    with Store.open(state, read_only=True) as store:
        found = store.measurements(selected=selected)
    return {key: entry._replace(kernel_seconds=0.0) for key, entry in found.items()}


def energies(state, *, selected=False):
    with Store.open(state, read_only=True) as store:
        return store.energies(selected=selected)


def pairs(found):
    return {(entry.tensor, entry.format) for entry in found.values()}


def expected(path, imatrix, chosen):
    """All (tensor, format) that a campaign has to measure."""
    matrix = read_imatrix(imatrix) if imatrix else None
    with open_model(path) as model:
        return {
            (tensor.name, fmt.name)
            for tensor in model.tensors
            if not why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format)
            for fmt in {*chosen, *((formats()["f16"],) if tensor.format == "f32" else ())}
            if fmt.fits(tensor.row_length)
            and fmt.name != tensor.format
            and ((matrix and matrix.covers(tensor)) or not requires_imatrix(tensor.name, fmt))
        }


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("sums", [True, False, None])
def test_everything_possible_is_measured(kind, sums, tmp_path):
    model = MODELS[kind]().write(tmp_path / "model.gguf")
    imatrix = None if sums is None else write_imatrix(model, tmp_path / "x", sums=sums)
    chosen = select_formats(f"{FEW},f16,bf16")
    seen = go(model, imatrix, tmp_path / "s.planner", chosen=chosen, settings=Settings(tolerance=0.5))
    found = measurements(tmp_path / "s.planner", selected=True)
    assert pairs(found) == expected(model, imatrix, chosen)
    assert seen[-1].done == seen[-1].total == seen[-1].fresh == len(found)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    for entry in found.values():
        values = [entry.err_var, entry.err_mean, entry.err_massive, entry.stderr, entry.stderr_massive]
        assert np.isfinite(values).all()
        assert min(values) >= 0
        if entry.format not in ("f16", "bf16"):
            assert 1e-6 < entry.err_var + entry.err_mean < 1
    for entry in energies(tmp_path / "s.planner", selected=True).values():
        assert all(np.isfinite(value) and value >= 0 for name, value in entry.values.items() if name != "stage")


@pytest.mark.parametrize("threads", [1, 2])
def test_going_on_is_as_good_as_never_stopping(threads, model, matrix, tmp_path, kernel_calls):
    go(model, matrix, tmp_path / "whole.planner", threads=1)
    whole = dict(kernel_calls)
    kernel_calls.clear()
    rounds = 0
    while True:
        steps = go(model, matrix, tmp_path / "parts.planner", steps=6 + rounds, threads=threads)
        rounds += 1
        if len(steps) < 5 + rounds:
            break
    assert rounds > 2
    assert measurements(tmp_path / "parts.planner") == measurements(tmp_path / "whole.planner")
    assert measurements(tmp_path / "parts.planner", selected=True) == measurements(tmp_path / "whole.planner")
    assert energies(tmp_path / "parts.planner") == energies(tmp_path / "whole.planner")
    # only what was in flight when a round ended was begun anew
    again = sum(kernel_calls.values()) - sum(whole.values())
    assert again <= rounds * 2 * threads * max(whole.values()) * len(FORMATS)


def test_what_is_measured_is_not_measured_again(model, matrix, tmp_path, kernel_calls):
    state = tmp_path / "s.planner"
    go(model, matrix, state)
    assert set(kernel_calls) == expected(model, matrix, FORMATS)
    before = measurements(state)
    kernel_calls.clear()
    os.utime(model)  # changed, as far as one can tell without reading it
    go(model, matrix, state)
    assert not kernel_calls
    (steps,) = [go(model, matrix, state)]
    assert steps[-1].fresh == 0
    assert steps[-1].done == steps[-1].total == len(before)
    assert measurements(state) == before
    more = select_formats(f"{FEW},q6_K")
    go(model, matrix, state, chosen=more)
    assert {fmt for _, fmt in kernel_calls} == {"q6_K"}
    assert pairs(measurements(state, selected=True)) == expected(model, matrix, more)
    # asked for fewer, those of before are still there to choose from
    go(model, matrix, state, chosen=select_formats("q6_K"))
    assert pairs(measurements(state, selected=True)) == expected(model, matrix, more)


def test_weights_that_change_are_measured_again_and_no_others(tmp_path, kernel_calls):
    maker = dense(width=256, inner=512, vocabulary=96, blocks=3)
    model = maker.write(tmp_path / "model.gguf")
    matrix, state = write_imatrix(model, tmp_path / "x"), tmp_path / "s.planner"
    go(model, matrix, state)
    before = measurements(state, selected=True)
    kernel_calls.clear()
    changed = "blk.1.ffn_up.weight"
    maker.arrays[changed][5, 7] *= 3
    maker.write(model)
    go(model, matrix, state)
    assert {name for name, _ in kernel_calls} == {changed}
    after = measurements(state, selected=True)
    assert pairs(after) == pairs(before)
    assert {entry.tensor for key, entry in after.items() if key not in before} == {changed}
    assert len(measurements(state)) == len(before) + len(FORMATS)
    kernel_calls.clear()
    maker.arrays[changed][5, 7] /= 3
    maker.write(model)
    go(model, matrix, state)  # back to what was measured first
    assert not kernel_calls
    assert measurements(state, selected=True) == before


def test_another_imatrix_is_another_measurement(model, matrix, tmp_path, kernel_calls):
    state = tmp_path / "s.planner"
    go(model, matrix, state)
    first = measurements(state, selected=True)
    other = write_imatrix(model, tmp_path / "y", seed=5)
    go(model, other, state)
    second = measurements(state, selected=True)
    embedding = {key for key, entry in first.items() if entry.tensor == "token_embd.weight"}
    assert set(first) & set(second) == embedding  # which no imatrix is about
    assert len(embedding) == len(FORMATS)
    assert measurements(state).keys() == first.keys() | second.keys()

    def one(name, second, means):
        if name == "blk.2.attn_k.weight":
            second[:] *= 2

    kernel_calls.clear()
    go(model, write_imatrix(model, tmp_path / "z", change=one), state)
    assert {name for name, _ in kernel_calls} == {"blk.2.attn_k.weight"}
    kernel_calls.clear()
    for imatrix, found in ((matrix, first), (other, second)):
        go(model, imatrix, state)
        assert not kernel_calls
        assert measurements(state, selected=True) == found
    go(model, None, state)
    assert len(measurements(state, selected=True)) == len(first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"tolerance": 0.2}])
def test_other_settings_are_other_measurements(change, model, matrix, tmp_path):
    state = tmp_path / "s.planner"
    go(model, matrix, state)
    first = measurements(state, selected=True)
    go(model, matrix, state, settings=Settings(**change))
    second = measurements(state, selected=True)
    assert not set(first) & set(second)
    assert pairs(first) == pairs(second)


@pytest.mark.parametrize("attribute", ["METRIC_VERSION", "library_digest", "library_version"])
def test_other_kernels_or_metrics_are_other_measurements(attribute, model, matrix, tmp_path, monkeypatch):
    state = tmp_path / "s.planner"
    go(model, matrix, state)
    first = measurements(state, selected=True)
    new = 999 if attribute == "METRIC_VERSION" else lambda: "999"
    monkeypatch.setattr(campaign_module if attribute == "METRIC_VERSION" else families_module, attribute, new)
    go(model, matrix, state)
    assert not set(first) & set(measurements(state, selected=True))


def test_one_thread_and_two_give_the_same_bits(tmp_path):
    model = experts().write(tmp_path / "model.gguf")
    names = {name: [0, 100, 30, 1] for name in experts().arrays if "_exps" in name}
    matrix = write_imatrix(model, tmp_path / "x", counts=names)
    for threads in (1, 2, 5):
        go(model, matrix, tmp_path / f"{threads}.planner", threads=threads, chosen=select_formats(CHEAP))
    assert measurements(tmp_path / "1.planner") == measurements(tmp_path / "2.planner")
    assert measurements(tmp_path / "1.planner") == measurements(tmp_path / "5.planner")
    assert energies(tmp_path / "1.planner") == energies(tmp_path / "2.planner") == energies(tmp_path / "5.planner")


def test_pins_are_measured_where_they_apply(model, matrix, tmp_path):
    state = tmp_path / "s.planner"
    go(model, matrix, state, pinned={"blk.0.attn_q.weight": (formats()["q5_0"],)})
    found = pairs(measurements(state, selected=True))
    assert found == expected(model, matrix, FORMATS) | {("blk.0.attn_q.weight", "q5_0")}


def test_what_does_not_belong_together(model, matrix, tmp_path):
    state = tmp_path / "s.planner"
    other = dense(width=512, inner=512, vocabulary=96, blocks=3).write(tmp_path / "other.gguf")
    with pytest.raises(ImatrixError, match="another model"):
        go(other, matrix, state)
    go(model, matrix, state)
    before = state.read_bytes()
    with pytest.raises(StateForeign, match="another model"):
        go(other, None, state)
    assert state.read_bytes() == before


def test_nothing_to_measure(tmp_path):
    maker = dense(width=256, inner=512, vocabulary=96, blocks=1)
    model = maker.write(tmp_path / "model.gguf")
    with pytest.raises(UsageError, match=r"can be stored as iq2_xs"):
        go(model, None, tmp_path / "s.planner", chosen=select_formats("iq2_xs"))
    maker.arrays = {name: array for name, array in maker.arrays.items() if array.ndim == 1}
    with pytest.raises(ModelError, match=r"no tensors that llama\.cpp would quantize"):
        go(maker.write(model), None, tmp_path / "t.planner")


def test_zeros_cost_nothing_and_break_nothing(tmp_path):
    maker = dense(width=256, inner=512, vocabulary=96, blocks=2)
    zeros = ("blk.0.ffn_up.weight", "blk.1.ffn_down.weight", "blk.0.attn_v.weight", "token_embd.weight")
    for name in zeros:
        maker.arrays[name][:] = 0
    model = maker.write(tmp_path / "model.gguf")
    for matrix in (write_imatrix(model, tmp_path / "x"), None):
        go(model, matrix, tmp_path / f"{bool(matrix)}.planner")
        for entry in measurements(tmp_path / f"{bool(matrix)}.planner", selected=True).values():
            if entry.tensor in zeros:
                assert (entry.err_var, entry.err_mean, entry.err_massive) == (0, 0, 0)
            else:
                assert entry.err_var > 0


HOLED, EMPTY = "blk.0.ffn_down.weight", "blk.1.attn_v.weight"


def holed(name, second, means):
    """An imatrix that says nothing of one tensor, and of a part of the channels of another."""
    if name == HOLED:
        second[0, :128] = 0
    if name == EMPTY:
        second[:] = 0


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_errors_where_the_imatrix_is_zero_are_not_zero(kind, model, tmp_path):
    chosen = select_formats("k,legacy,iq4_xs,-q8_0")
    matrix = write_imatrix(model, tmp_path / "x", change=holed, sums=kind == "gguf")
    if kind == "dat":
        values = [(name, entry.values) for name, entry in read_imatrix(matrix).entries.items()]
        matrix.write_bytes(legacy_bytes(values, chunk_count=1, datasets=()))
    go(model, matrix, tmp_path / "s.planner", chosen=chosen, settings=Settings(tolerance=1e-6))
    found = {(e.tensor, e.format): e for e in measurements(tmp_path / "s.planner", selected=True).values()}
    with open_model(model) as opened:
        # the true share of the weights' energy that is lost, channels alike
        for name in (HOLED, EMPTY):
            rows, weights = opened.rows(opened[name]), read_imatrix(matrix).weights(opened[name])[0]
            for fmt in chosen:
                lost = np.square(round_trip(fmt, rows, weights) - rows)
                blind = slice(None) if name == EMPTY else slice(0, 128)
                share = float(lost[:, blind].sum() / np.square(rows[:, blind]).sum())
                err = found[name, fmt.name].err_var + found[name, fmt.name].err_mean
                assert share < 0.15  # as anywhere else
                assert 0.2 * share < err < 5 * share
                if name == EMPTY:
                    assert err == pytest.approx(share, rel=1e-5)
    for entry in energies(tmp_path / "s.planner", selected=True).values():
        assert ("var" in entry.values) is (entry.tensor not in (EMPTY, "output.weight")), entry.tensor


def test_zeros_of_an_imatrix_are_another_measurement_and_nothing_else_is(model, matrix, tmp_path, monkeypatch):
    """Keys of old states: an entry's digest, unless it has gaps; so too what passes are known by."""
    with open_model(model) as opened:
        ordinary, zeros = read_imatrix(matrix), read_imatrix(write_imatrix(model, tmp_path / "y", change=holed))
        assert all(entry.key == entry.digest for entry in ordinary.entries.values())
        assert {name for name, entry in zeros.entries.items() if entry.key != entry.digest} == {HOLED, EMPTY}
        assert opened is not None
    go(model, tmp_path / "y", tmp_path / "s.planner")
    versions = {entry.tensor: entry.gaps_version for entry in energies(tmp_path / "s.planner").values()}
    assert {name for name, version in versions.items() if version is not None} == {HOLED, EMPTY}


def test_the_inventory_tells_what_solving_needs(model, matrix, tmp_path):
    go(model, matrix, tmp_path / "s.planner", settings=Settings(seed=3))
    with Store.open(tmp_path / "s.planner", read_only=True) as store, open_model(model) as opened:
        inventory = store.inventory()
        assert [tensor.name for tensor in inventory.tensors] == [tensor.name for tensor in opened.tensors]
        assert [tensor.nbytes for tensor in inventory.tensors] == [tensor.nbytes for tensor in opened.tensors]
        assert inventory.model_digest == opened.digest
        assert inventory.metadata["block_count"] == 3
        assert inventory.metadata["sampling.seed"] == 3
        assert inventory.has_means
        for entry in store.energies(selected=True).values():
            assert len(entry.content_digest) == 64
