"""Greedy trajectories against a loop that says one token after the other, from the beginning every time."""

from __future__ import annotations

import numpy as np
import pytest

from planner.gguf import open_model
from planner.gguf.quantize import quantize_model
from planner.llama.engine import Engine
from planner.llama.evaluate import trajectories as module
from planner.llama.evaluate.baseline import record
from planner.llama.evaluate.trajectories import Alike, alike, together, trajectories
from tests.conftest import EXAMPLES

TEXT = (EXAMPLES / "evaluation.txt").read_text(encoding="utf-8")


def greedy(engine: Engine, prompt: list[int], length: int) -> list[int]:
    """The most likely token, `length` times; the whole text is run again for each."""
    said: list[int] = []
    while len(said) < length and not (said and engine.ends(said[-1])):
        tokens = np.array([*prompt, *said], np.int32)
        (block,) = engine.passage(tokens, np.arange(len(tokens)) == len(tokens) - 1)
        said.append(int(block.logits[0].argmax()))
    return said


@pytest.fixture(scope="module")
def coarse(tmp_path_factory, example):
    """The example with some of it in q2_K, so that it says something else soon."""
    path = tmp_path_factory.mktemp("coarse") / "coarse.gguf"
    with open_model(example.model) as model:
        quantize_model(model, {"blk.1.ffn_down.weight": "q2_K", "blk.2.attn_v.weight": "q2_K"}, None, path, file_type=2)
    return path


def test_said_and_compared_as_a_loop_does(example, coarse, monkeypatch):
    monkeypatch.setattr(module, "LENGTH", 6)
    with Engine(example.model, context=24, threads=2) as engine:
        tokens = engine.tokenize(TEXT)[:120].reshape(5, 24)
        prompts = [row[: 9 + 2 * number] for number, row in enumerate(tokens)]
        assert engine.windows_at_a_time > 1
        found = trajectories(engine, prompts)
        begun = [[engine.bos if engine.adds_bos else int(prompt[0]), *prompt[1:].tolist()] for prompt in prompts]
        assert found == [greedy(engine, prompt, 6) for prompt in begun]
        same = alike(engine, prompts, found)
        assert same.same.all()
        assert same.lengths.tolist() == [len(said) for said in found]
    with Engine(coarse, context=24, threads=2) as engine:
        compared = alike(engine, prompts, found)
        expected = []
        for prompt, said in zip(begun, found, strict=True):
            own = greedy(engine, prompt, 6)
            differ = [place for place, token in enumerate(said) if own[place : place + 1] != [token]]
            expected.append(differ[0] if differ else len(said))
        assert compared.tokens.tolist() == expected
        assert not compared.same.all()


def test_an_answer_may_end_before(example, monkeypatch):
    """A token that ends a text is the last of its trajectory."""
    monkeypatch.setattr(module, "LENGTH", 6)
    with Engine(example.model, context=24, threads=2) as engine:
        prompts = [engine.tokenize(TEXT)[:10]]
        (said,) = trajectories(engine, prompts)
        monkeypatch.setattr(engine, "ends", lambda token: token == said[2])
        assert trajectories(engine, prompts) == [said[: said.index(said[2]) + 1]]
        found = alike(engine, prompts, [said[:3]])
        assert (found.tokens.tolist(), found.lengths.tolist()) == ([3], [3])


def test_prompts_are_spread_over_the_text(example):
    with Engine(example.model, context=64, threads=2) as engine:
        tokens = engine.tokenize(TEXT)[: 64 * 10].reshape(10, 64)
        with record(engine, tokens[:10]) as baseline:
            assert [prompt.tolist() for prompt in baseline.prompts(5, 32)] == tokens[::2, :32].tolist()
            assert len(baseline.prompts(100, 32)) == 10
            assert {len(prompt) for prompt in baseline.prompts(2, 50)} == {14}
            assert baseline.prompts(2, 64) == []


def test_divergence_at_32():
    one = Alike(np.array([32, 3, 32], np.int32), np.array([32, 32, 32], np.int32))
    other = Alike(np.array([5], np.int32), np.array([5], np.int32))  # which ended early
    both = together([one, other])
    assert both.same.tolist() == [True, False, True, True]
    share, error = both.diverged
    assert (share, error) == (0.25, pytest.approx((0.25 * 0.75 / 3) ** 0.5))
    assert other.diverged == (0.0, 0.0)
