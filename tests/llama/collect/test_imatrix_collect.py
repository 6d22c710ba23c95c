"""What is collected: against llama-imatrix's own file, and against its loops in Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import ModelError
from planner.gguf import read_imatrix
from planner.gguf.sums import Sums
from planner.llama.collect.collector import Collector, Text, collect
from planner.llama.engine import Engine, cut
from tests.models import mixture

GOLDEN = Path(__file__).parents[2] / "golden/prose-8m-40x64.imatrix.gguf"  # llama-imatrix -c 64 --chunks 40


def node_of(operation, sources):
    """An operation as the engine shows it."""
    return SimpleNamespace(operation=operation, sources=sources)


@dataclass
class Fake:
    """A tensor of the graph made of an array (numpy's order of dimensions, any strides)."""

    name: str
    array: np.ndarray
    type: int = 0
    address: int = 0
    shape: tuple[int, ...] = field(init=False)
    strides: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.array = self.array.reshape((1,) * (4 - self.array.ndim) + self.array.shape)
        self.shape, self.strides = self.array.shape[::-1], self.array.strides[::-1]
        self.address = self.address or id(self.array)

    def read(self) -> np.ndarray:
        last = sum(stride * (size - 1) for stride, size in zip(self.array.strides, self.array.shape, strict=True))
        start = self.array.__array_interface__["data"][0]
        base = self.array
        while isinstance(base.base, np.ndarray):
            base = base.base
        offset = start - base.__array_interface__["data"][0]
        return np.frombuffer(base.tobytes(), np.uint8, last + 4, offset)


class Loops:
    """`collect_imatrix`, loop by loop, in float64."""

    def __init__(self) -> None:
        self.sum2, self.sums, self.counts = {}, {}, {}

    def see(self, node) -> None:
        weight, x = node.sources[:2]
        width, matrices = x.shape[0], weight.shape[2] * weight.shape[3]
        values = np.ndarray(x.shape[::-1], np.float32, x.read(), strides=x.strides[::-1]).astype(float)
        for kind in self.sum2, self.sums:
            kind.setdefault(weight.name, np.zeros((matrices, width)))
        if node.operation == "MUL_MAT_ID":
            ids = node.sources[2]
            chosen = np.ndarray(ids.shape[::-1], np.int32, ids.read(), strides=ids.strides[::-1])[0, 0]
            counts = self.counts.setdefault(weight.name, np.zeros(matrices, int))
            for slot in range(ids.shape[0]):
                for token in range(x.shape[2]):
                    expert, row = chosen[token, slot], values[0, token, slot % x.shape[1]]
                    counts[expert] += 1
                    self.sum2[weight.name][expert] += row * row
                    self.sums[weight.name][expert] += row
            return
        self.counts.setdefault(weight.name, np.zeros(1, int))
        self.counts[weight.name] += values.shape[0] * values.shape[1] * values.shape[2] // matrices
        for i3 in range(values.shape[0]):
            for i2 in range(values.shape[1]):
                matrix = (i3 % weight.shape[3]) * weight.shape[2] + i2 % weight.shape[2]
                for row in values[i3, i2]:
                    self.sum2[weight.name][matrix] += row * row
                    self.sums[weight.name][matrix] += row


def compare(sums: Sums, loops: Loops) -> None:
    assert sums.tensors.keys() == loops.sum2.keys()
    for name, entry in sums.tensors.items():
        np.testing.assert_array_equal(entry.counts, loops.counts[name])
        np.testing.assert_allclose(entry.sum2, loops.sum2[name].reshape(-1), rtol=2e-5, atol=1e-30)
        scale = np.sqrt(loops.sum2[name].max() * max(1, entry.counts.max()))
        assert entry.sums is not None
        np.testing.assert_allclose(entry.sums, loops.sums[name].reshape(-1), atol=1e-5 * scale + 1e-30)


class Both:
    """The collector and the loops at once."""

    def __init__(self, collector: Collector, loops: Loops) -> None:
        self.collector, self.loops = collector, loops

    def wants(self, node) -> bool:
        return self.collector.wants(node)

    def see(self, node) -> None:
        self.collector.see(node)
        if node.operation != "ADD":  # the stream, which has an oracle of its own
            self.loops.see(node)


def test_values_and_counts_are_llama_imatrix_s(example, here, run):
    text = example.model.parent / "calibration.txt"
    arguments = ("imatrix", example.model, "--text", text, "-c", 64, "--chunks", 40, "-t", 2, "-o", "x.gguf")
    done = run(*arguments, "--no-process-output")
    assert done.status == 0, done.text
    assert "56 of the 58 tensors" in done.out
    assert "planner measure" in done.out
    ours, theirs = read_imatrix("x.gguf"), read_imatrix(GOLDEN)
    assert list(ours.entries) == list(theirs.entries)
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, theirs.chunk_size) == (40, 64)
    for name, entry in ours.entries.items():
        np.testing.assert_array_equal(entry.counts, theirs.entries[name].counts)
        # kernels of another processor add up in another order: up to 6e-4 in a channel, 1e-5 in all of them together
        found, expected = entry.raw_sum2, theirs.entries[name].raw_sum2
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        assert found.sum() == pytest.approx(expected.sum(), rel=1e-4)
        assert entry.has_means


def test_experts_and_means_are_those_of_the_loops(example, here):
    model = mixture(example.model, here / "moe.gguf")
    sums, loops = Sums(64), Loops()
    with Engine(model, context=64, threads=2, observer=Both(Collector(sums), loops), windows_at_a_time=2) as engine:
        tokens = engine.tokenize((example.model.parent / "calibration.txt").read_text(encoding="utf-8")[:4000])
        assert list(collect(engine, [Text("x", cut(tokens, 64, 3))])) == [2, 3]
    compare(sums, loops)
    counts = sums.tensors["blk.0.ffn_up_exps.weight"].counts
    assert counts.sum() == 2 * 3 * 64
    assert len(set(counts.tolist())) > 1


def test_only_what_llama_imatrix_wants():
    x, w, y = np.zeros((16, 8), np.float32), np.zeros((4, 8), np.float16), np.zeros((15, 8), np.float32)
    wants = Collector(Sums(64)).wants
    assert wants(node_of("MUL_MAT", (Fake("blk.0.attn_q.weight", w), Fake("x", x))))
    assert not wants(node_of("ADD", (Fake("blk.0.attn_q.weight", w), Fake("x", x))))
    assert not wants(node_of("MUL_MAT", (Fake("blk.0.attn_q.weight", w), Fake("y", y))))
    assert not wants(node_of("MUL_MAT", (Fake("cache_k_l0", w), Fake("x", x))))
    assert not wants(node_of("MUL_MAT", (Fake("blk.0.attn_q.weight", w), Fake("x", x, type=1))))
    for name in ("output.weight", "token_embd.weight"):
        logits = node_of("MUL_MAT", (Fake(name, w), Fake("x", x)))
        assert not wants(logits)
        assert Collector(Sums(64), output=True).wants(logits)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tensors_of_any_shape_are_those_of_the_loops(data):
    draw = data.draw
    width, rows = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    sums, loops = Sums(16), Loops()
    collector = Collector(sums)
    inner, outer = draw(st.sampled_from([(1, 1), (3, 1), (2, 2)]))
    weight = np.zeros((outer, inner, 2, width), np.float16)
    experts = draw(st.integers(1, 5))
    for _ in range(draw(st.integers(1, 3))):
        # activations that are a view of something transposed
        x = rng.normal(size=(outer * draw(st.integers(1, 2)), rows, inner, width)).astype(np.float32)
        node = node_of("MUL_MAT", (Fake("blk.0.a.weight", weight), Fake("x", x.transpose(0, 2, 1, 3))))
        used = draw(st.integers(1, experts))
        ids = np.array([rng.permutation(experts) for _ in range(rows)], np.int32)[:, :used]
        seen = rng.normal(size=(rows, draw(st.sampled_from([1, used])), width)).astype(np.float32)
        several = np.zeros((experts, 2, width), np.float16)
        shared = Fake("y", seen), Fake("ids", ids, type=26)
        routed = [node_of("MUL_MAT_ID", (Fake(f"blk.0.{name}.weight", several), *shared)) for name in "bc"]
        for each in (node, *routed):
            collector.see(each)
            loops.see(each)
    compare(sums, loops)


def test_activations_that_are_no_numbers_name_the_tensor():
    x = np.full((16, 4), np.nan, np.float32)
    weight = Fake("blk.3.ffn_up.weight", np.zeros((2, 4), np.float16))
    with pytest.raises(ModelError, match=r"NaN or infinite activations go into blk\.3\.ffn_up"):
        Collector(Sums(16)).see(node_of("MUL_MAT", (weight, Fake("x", x))))
    with pytest.raises(ModelError, match="NaN or infinite"):
        Collector(Sums(16)).see(node_of("MUL_MAT", (weight, Fake("x", np.full((16, 4), 1e30, np.float32)))))


def test_batches_begin_where_they_did(example):
    text = Text("x", np.zeros((3, 64), np.int32))
    with Engine(example.model, context=64, threads=2, windows_at_a_time=2) as engine:
        with pytest.raises(ValueError, match="1 is within"):
            next(collect(engine, [text], start=1))
        assert list(collect(engine, [text], start=3)) == []
