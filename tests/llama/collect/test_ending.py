"""Batches that end before the output matrix: the same sums, and the matrix is not run."""

from __future__ import annotations

import numpy as np
import pytest

from planner.gguf.sums import Sums
from planner.llama.collect.collector import Collector, Text, collect
from planner.llama.collect.ending import shortened
from planner.llama.engine import Engine, cut
from planner.llama.graph import Node
from tests.architectures import write_model

CONTEXT = 32
OUTPUT = "output.weight"


class Counter:
    """Counts multiplications by the output matrix that llama.cpp comes to, and shows all to another observer."""

    def __init__(self, observer):
        self.observer, self.outputs = observer, 0

    def wants(self, node):
        self.outputs += type(node) is Node and node.operation == "MUL_MAT" and node.sources[0].name == OUTPUT
        return self.observer.wants(node)

    def see(self, node):
        self.observer.see(node)


def sums_of(path, text, *, output, ends):
    sums = Sums(CONTEXT)
    collector = Collector(sums, output=output)
    with Engine(path, context=CONTEXT, threads=2, observer=collector, predicts=False, logits=False) as engine:
        counter = engine.observer = Counter(shortened(engine, collector) if ends else collector)
        windows = cut(engine.tokenize(text), CONTEXT, engine.windows_at_a_time + 1)
        assert list(collect(engine, [Text("x", windows)]))[-1] == len(windows)
    return sums, counter.outputs


def every_array(entry):
    return [entry.counts, entry.sum2, entry.sums, *(entry.stream.arrays if entry.stream else ())]


@pytest.mark.parametrize("output", [True, False])
def test_the_sums_are_the_same(example, output):
    text = example.model.with_name("calibration.txt").read_text(encoding="utf-8")[:20000]
    whole, ran = sums_of(example.model, text, output=output, ends=False)
    ended, never = sums_of(example.model, text, output=output, ends=True)
    assert ran > 0
    assert never == 0
    check(whole, ended)
    assert (OUTPUT in ended.tensors) == output


# logits that are scaled or capped; no output matrix; draft heads
@pytest.mark.parametrize("architecture", ["gemma3", "cohere2", "bert", "qwen35"])
def test_whatever_comes_after_the_last_norm(architecture, example, tmp_path):
    path = write_model(architecture, tmp_path / "m.gguf")
    text = example.model.with_name("calibration.txt").read_text(encoding="utf-8")[:4000]
    check(*(sums_of(path, text, output=True, ends=ends)[0] for ends in (False, True)))


def check(whole, ended):
    assert list(whole.tensors) == list(ended.tensors)
    for name, entry in whole.tensors.items():
        for one, other in zip(every_array(entry), every_array(ended.tensors[name]), strict=True):
            np.testing.assert_array_equal(one, other)
