"""What writes to the residual stream, with tokens weighted by the stream: against norms as the graph computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.errors import ImatrixError
from planner.gguf import open_model, read_imatrix
from planner.gguf.imatrix_writer import imatrix_items, write_imatrix
from planner.gguf.sums import Sums, merge_imatrices
from planner.llama.collect.collector import Collector, Text, collect
from planner.llama.engine import Engine, cut
from planner.measure import moments
from planner.names.gguf import ATTENTION_WRITERS, FFN_WRITERS, role_of
from tests.architectures import write_model
from tests.models import mixture

WRITERS = (*ATTENTION_WRITERS, *FFN_WRITERS, "proj")
CONTEXT, WINDOWS = 64, 6


class Stream:
    """What the norm before each feed-forward reads, and what went into attn_output just before, in float64."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.streams: dict[str, list[np.ndarray]] = {}
        self.inputs: dict[str, list[np.ndarray]] = {}
        self.pending: tuple[str, np.ndarray] | None = None

    def wants(self, node) -> bool:
        self.asked = self.collector.wants(node)
        return self.asked or node.operation == "RMS_NORM"

    def see(self, node) -> None:
        if node.operation == "RMS_NORM":
            if self.pending is not None:
                self.streams.setdefault(self.pending[0], []).append(self.values(node.sources[0]))
                self.inputs.setdefault(self.pending[0], []).append(self.pending[1])
            self.pending = None
            return
        self.collector.see(node)
        if node.operation == "MUL_MAT" and "attn_output" in node.sources[0].name:
            self.pending = node.sources[0].name, self.values(node.sources[1])

    def values(self, tensor) -> np.ndarray:
        array = np.ndarray(tensor.shape[::-1], np.float32, tensor.read(), strides=tensor.strides[::-1])
        return array.reshape(-1, tensor.shape[0]).astype(np.float64)


@pytest.fixture(scope="module")
def collected(example, tmp_path_factory) -> tuple[Sums, Stream, Path]:
    """Sums and the oracle's arrays of the bundled model, and the file that is made of the former."""
    sums = Sums(CONTEXT, datasets=["a text"])
    oracle = Stream(Collector(sums))
    with Engine(example.model, context=CONTEXT, threads=2, observer=oracle, predicts=False) as engine:
        text = engine.tokenize(example.model.with_name("calibration.txt").read_text()[:20000])
        windows = cut(text, CONTEXT, WINDOWS)
        for _ in collect(engine, [Text("a text", windows)]):
            pass
    path = tmp_path_factory.mktemp("stream") / "x.gguf"
    write_imatrix(sums, path, force=False)
    return sums, oracle, path


def test_every_writer_has_a_stream(collected):
    sums, _, path = collected
    entries = read_imatrix(path).entries
    for name, entry in sums.tensors.items():
        writes = "attn_output" in name or "ffn_down" in name
        assert (entry.stream is not None) == writes == (entries[name].stream is not None), name


def test_sums_are_weighted_by_what_the_next_norm_reads(collected):
    _, oracle, path = collected
    entries = read_imatrix(path).entries
    for name, parts in oracle.streams.items():
        stream, inputs = np.concatenate(parts), np.concatenate(oracle.inputs[name])
        energy = (stream**2).sum(axis=1)
        found = entries[name].stream
        assert found is not None
        assert found.energy == pytest.approx(1 / np.mean(1 / energy), rel=1e-4)
        direction = (stream / np.sqrt(energy)[:, None]).mean(axis=0)
        assert found.varying == pytest.approx(1 - direction @ direction, abs=1e-4)
        second, mean = found.moments()
        weights = 1 / energy
        np.testing.assert_allclose(second[0], weights @ inputs**2 / weights.sum(), rtol=1e-3)
        np.testing.assert_allclose(mean[0], weights @ inputs / weights.sum(), atol=1e-4 * np.abs(inputs).max())


def test_experts_share_the_tokens(example, tmp_path):
    model = mixture(example.model, tmp_path / "mixture.gguf")
    sums = Sums(CONTEXT)
    with Engine(model, context=CONTEXT, threads=2, observer=Collector(sums), predicts=False) as engine:
        windows = cut(engine.tokenize(example.model.with_name("calibration.txt").read_text()[:20000]), CONTEXT, WINDOWS)
        for _ in collect(engine, [Text("a text", windows)]):
            pass
    down = sums.tensors["blk.1.ffn_down_exps.weight"].stream
    assert down is not None
    assert down.stream[1] == windows.size
    np.testing.assert_allclose(down.weights.sum(), 2 * down.stream[0], rtol=1e-4)  # each token uses two experts
    assert (down.weights > 0).all()


def test_merging_adds_streams_and_forgets_those_of_a_part(collected, example):
    _, _, path = collected
    one = read_imatrix(path)
    twice = merge_imatrices([one, one])
    name = "blk.0.ffn_down.weight"
    for own, both in zip(one.entries[name].stream.arrays, twice.tensors[name].stream.arrays, strict=True):
        np.testing.assert_array_equal(2 * own.reshape(-1), both)
    assert merge_imatrices([one, read_imatrix(example.plain)]).tensors[name].stream is None


@pytest.mark.parametrize("lacking", [".stream_sum2", ".stream_counts", ".stream"])
def test_half_a_stream_is_an_error(lacking, collected, tmp_path, monkeypatch):
    sums, _, _ = collected
    some = [pair for pair in imatrix_items(sums) if not pair[0].name.endswith(f"attn_output.weight{lacking}")]
    monkeypatch.setattr("planner.gguf.imatrix_writer.imatrix_items", lambda _: iter(some))
    write_imatrix(sums, tmp_path / "x.gguf", force=False)
    with pytest.raises(ImatrixError, match=r"attn_output.weight has of the stream is incomplete"):
        read_imatrix(tmp_path / "x.gguf")


def test_a_token_with_a_huge_stream_says_nothing_of_the_others(collected, example, tmp_path):
    """As the first token of a text has in many models: mean squares follow it, weighted ones do not."""
    sums, _, path = collected
    name = "blk.4.ffn_down.weight"
    with open_model(example.model) as model:
        before = moments(model[name], read_imatrix(path))
        entry, factor = sums.tensors[name], np.float32(1e4)
        loud = factor * entry.sum2  # one token more
        weight = 1 / np.float32(1e12)  # its stream is louder still
        entry.sum2 += loud
        entry.stream.sum2 += weight * loud
        entry.stream.stream[:2] += [weight, 1]
        entry.counts += 1
        write_imatrix(sums, tmp_path / "x.gguf", force=False)
        after = moments(model[name], read_imatrix(tmp_path / "x.gguf"))
    assert after.token_second.sum() > 10 * before.token_second.sum()
    np.testing.assert_allclose(after.second, before.second, rtol=0.05)
    assert after.stream == pytest.approx(before.stream, rel=0.05)


@pytest.mark.parametrize("architecture", ["gpt-oss", "gemma4", "qwen35", "lfm2"])
def test_all_writers_have_seen_all_tokens(architecture, example, tmp_path):
    """In models that choose rows, or scale the stream, before the last norm; in batches of two lengths."""
    path = write_model(architecture, tmp_path / "m.gguf")
    sums = Sums(CONTEXT, datasets=["a text"])
    with Engine(path, context=CONTEXT, threads=2, observer=Collector(sums), predicts=False) as engine:
        text = engine.tokenize(example.model.with_name("calibration.txt").read_text()[:4000])
        windows = cut(text, CONTEXT, engine.windows_at_a_time + 1)
        for _ in collect(engine, [Text("a text", windows)]):
            pass
    seen = {name: entry.stream for name, entry in sums.tensors.items() if role_of(name)[1].startswith(WRITERS)}
    assert {role_of(name)[0] for name in seen} >= set(range(6))
    for name, stream in seen.items():
        assert stream is not None, name
        assert stream.stream[1] == windows.size, name
