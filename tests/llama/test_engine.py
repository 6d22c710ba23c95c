"""The two engines on one model: windows by themselves, and sequences that share what they begin with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pytest

from planner.llama.branches import BranchedEngine
from planner.llama.engine import Block, Engine, cut
from tests.models import wide


def test_windows_and_branches_give_the_same_logits(example):
    with Engine(example.model, context=16, threads=1) as engine:
        tokens = cut(engine.tokenize("The cat sat on the mat, and then it went home again. " * 4), 16, 2)
        assert engine.windows_at_a_time > 1
        tokens[1, :8] = tokens[0, :8]  # alike up to the middle
        tokens[:, 0] = engine.bos if engine.adds_bos else tokens[0, 0]
        expected = [block.logits.copy() for block in engine.windows(tokens, first=8)]
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


def logits_of(blocks: Iterable[Block]) -> dict[int, np.ndarray]:
    """All logits of each window."""
    parts = defaultdict(list)
    for block in blocks:
        assert block.start == sum(map(len, parts[block.window]))
        parts[block.window].append(block.logits.copy())
    return {window: np.concatenate(own) for window, own in parts.items()}


@pytest.mark.parametrize("batch", [7, 64, 96])
def test_batch_by_batch_the_logits_are_those_of_a_whole_window(example, batch):
    """A window of one and a half batches begins within one."""
    with Engine(example.model, context=96, threads=1) as engine:
        tokens = cut(engine.tokenize("The cat sat on the mat, and then it went home again. " * 40), 96, 3)
        expected = logits_of(engine.windows(tokens, first=48))
    with Engine(example.model, context=96, threads=1, batch=batch) as engine:
        assert (engine.windows_at_a_time, engine.batch_tokens) == (1, batch)
        blocks = list(engine.windows(tokens, first=48))
        assert max(len(block.logits) for block in blocks) <= batch
        assert [block.tokens for block in blocks if block.window == 1] == [*range(batch, 96, batch), 96]
        found = logits_of(engine.windows(tokens, first=48))
        wanted = np.isin(np.arange(96), (0, 5, 63, 64, 90))
        begun = tokens[2].copy()
        begun[0] = engine.bos if engine.adds_bos else begun[0]
        (some,) = logits_of(engine.passage(begun, wanted)).values()
        (every,) = logits_of(engine.passage(begun, np.ones(96, np.bool_))).values()
    for window, own in expected.items():
        np.testing.assert_allclose(found[window], own, rtol=0, atol=0.02 * np.abs(own).max())
    np.testing.assert_allclose(some, every[wanted], rtol=0, atol=1e-3 * np.abs(every).max())
    np.testing.assert_allclose(every[48:], found[2], rtol=0, atol=1e-3 * np.abs(every).max())


def test_logits_take_no_more_memory_for_a_longer_context(tmp_path):
    """Of 131,072 words, 32 MB are logits of 64 tokens: those that are scored of 384 would take 100 MB."""
    path = wide(tmp_path / "wide.gguf", words=1 << 17)
    bound = 32 << 20
    with pytest.MonkeyPatch.context() as patch, Engine(path, context=384, threads=2) as whole:
        tokens = np.random.default_rng(0).integers(3, whole.vocabulary_size, (1, 384), np.int32)
        (expected,) = whole.windows(tokens, first=192)
        patch.setattr("planner.llama.engine._LOGITS_BYTES", bound)
        with Engine(path, context=16, threads=2) as engine:
            assert (engine.windows_at_a_time, engine.batch_tokens) == (4, 64)
            engine.resize(384)
            assert engine.batch_tokens * engine.vocabulary_size * 4 == bound
            rows = 0
            for block in engine.windows(tokens, first=192):
                assert block.logits.nbytes <= bound
                np.testing.assert_allclose(block.logits, expected.logits[block.start : block.stop], atol=1e-2)
                rows += len(block.logits)
    assert rows == 192


@pytest.mark.parametrize(("context", "branches"), [(8, 9), (1024, 257)])
def test_more_branches_than_there_can_be(context, branches, example):
    with pytest.raises(ValueError, match=f"{branches} branches need"):
        BranchedEngine(example.model, context=context, branches=branches)
