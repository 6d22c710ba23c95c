"""The two engines on one model: windows by themselves, and sequences that share what they begin with."""

from __future__ import annotations

import numpy as np
import pytest

from planner.llama.branches import BranchedEngine
from planner.llama.engine import Engine, cut


def test_windows_and_branches_give_the_same_logits(example):
    with Engine(example.model, context=16, threads=1) as engine:
        tokens = cut(engine.tokenize("The cat sat on the mat, and then it went home again. " * 4), 16, 2)
        assert engine.windows_at_a_time > 1
        tokens[1, :8] = tokens[0, :8]  # alike up to the middle
        tokens[:, 0] = engine.bos if engine.adds_bos else tokens[0, 0]
        expected = [logits.copy() for _, logits in engine.windows(tokens, first=8)]
    with BranchedEngine(example.model, context=64, branches=2, threads=1) as engine:
        assert (engine.branches, engine.memory.shared) == (2, True)
        rest = tokens[:, 8:].reshape(-1)
        count = 8 + rest.size
        logits = engine.decode(
            np.concatenate([tokens[0, :8], rest]),
            np.concatenate([np.arange(8), np.tile(np.arange(8, 16), 2)]).astype(np.int32),
            np.concatenate([np.zeros(8), np.repeat([0, 1], 8)]).astype(np.int32),
            np.arange(count) >= 8,
            np.where(np.arange(count) < 8, 2, 1).astype(np.int32),
        )
        found = logits.reshape(2, 8, -1).copy()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.05 * np.abs(theirs).max())
        np.testing.assert_array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))


@pytest.mark.parametrize(("context", "branches"), [(8, 9), (1024, 257)])
def test_more_branches_than_there_can_be(context, branches, example):
    with pytest.raises(ValueError, match=f"{branches} branches need"):
        BranchedEngine(example.model, context=context, branches=branches)
