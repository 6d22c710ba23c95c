"""Files of log-probabilities: what is written is what llama-perplexity reads, and nothing broken gets through."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from planner.errors import BaselineError, InferenceError, OutputError, PlannerError
from planner.inputs.kinds import BASELINE
from planner.inputs.reading import kind_at
from planner.llama.engine import Block, Engine
from planner.llama.evaluate import logprobs
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.compare import base_nll, diverge
from planner.llama.workers import Workers

CONTEXT, VOCABULARY = 8, 11


class Parrot:
    """An engine whose logits are random, the same for the same window; they come `batch` tokens at a time."""

    path, workers = Path("parrot.gguf"), Workers(2, "parrot")

    def __init__(
        self, vocabulary: int = VOCABULARY, *, noise: float = 0, fails_at: int | None = None, value: float = np.nan,
        batch: int = CONTEXT,
    ) -> None:  # fmt: skip
        self.vocabulary_size, self.noise, self.fails_at, self.value = vocabulary, noise, fails_at, value
        self.batch = batch

    def logits(self, number: int, context: int, first: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(number)
        found = 4 * rng.standard_normal((context, self.vocabulary_size))
        found += self.noise * rng.standard_normal(found.shape)
        return found[first:].astype(np.float32)

    def windows(self, tokens: NDArray[np.int32], *, first: int) -> Iterator[Block]:
        for number in range(len(tokens)):
            logits = self.logits(number, tokens.shape[1], first)
            if number == self.fails_at:
                logits[0, 3] = self.value
            for start in range(0, CONTEXT, self.batch):
                stop, row = start + self.batch, max(0, start - first)
                yield Block(number, min(stop, CONTEXT), row, logits[row : max(0, stop - first)])


def parrot(**options: Any) -> Engine:
    return cast(Engine, Parrot(**options))


def some_windows(count: int = 3) -> NDArray[np.int32]:
    return np.random.default_rng(5).integers(VOCABULARY, size=(count, CONTEXT), dtype=np.int32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    record(parrot(), some_windows(), tmp_path / "base.kld").close()
    return tmp_path / "base.kld"


def test_the_file_is_as_llama_perplexity_writes_it(file: Path):
    """Read with struct, by the order in which perplexity.cpp writes."""
    data = file.read_bytes()
    assert data[:8] == b"_logits_"
    assert struct.unpack_from("<3i", data, 8) == (CONTEXT, VOCABULARY, 3)
    tokens = np.frombuffer(data, "<i4", 3 * CONTEXT, 20).reshape(3, CONTEXT)
    np.testing.assert_array_equal(tokens, some_windows())
    at = 20 + 4 * 3 * CONTEXT
    for number in range(3):
        logits = Parrot().logits(number, CONTEXT, CONTEXT // 2).astype(np.float64)
        for row in logits[: CONTEXT - 1 - CONTEXT // 2]:
            scale, least = struct.unpack_from("<2f", data, at)
            words = struct.unpack_from(f"<{VOCABULARY}H", data, at + 8)
            below = row - row.max()
            exact = np.maximum(below, -16) - np.log(np.exp(below).sum())
            np.testing.assert_allclose(scale * np.array(words) + least, exact, atol=0.6 * scale + 1e-6)
            at += 2 * (2 * ((VOCABULARY + 1) // 2) + 4)
    assert at == len(data)


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)),
        elements=st.floats(-50, 50, width=32),
    )
)  # fmt: skip
def test_log_probabilities_survive(logits):
    """Down to 16 nats below the most likely word, to half a step."""
    exact = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    floor = np.maximum(exact, -16)
    total = np.log(np.exp(exact).sum(axis=1, keepdims=True))
    decoded = logprobs.decode(logprobs.encode(logits), logits.shape[1])
    np.testing.assert_allclose(decoded, floor - total, atol=0.5 * 16 / 65535 + 2e-5)


def test_a_model_does_not_diverge_from_itself(file: Path):
    with Baseline.open(file) as baseline:
        found = diverge(parrot(), baseline)
        assert np.abs(found.kld).max() < 1e-4  # half a step of 16 bits
        np.testing.assert_array_equal(found.top, found.top_base)
        np.testing.assert_array_equal(found.nll_base, base_nll(baseline))
        targets = some_windows()[:, CONTEXT // 2 + 1 :].reshape(-1)
        np.testing.assert_array_equal(found.tokens, targets)
        assert diverge(parrot(noise=1), baseline).kld.mean() > 0.1


def test_temporary_and_kept_are_the_same(file: Path):
    told = []
    with record(parrot(), some_windows(), progress=lambda done, of: told.append((done, of))) as baseline:
        with Baseline.open(file) as kept:
            for number in range(3):
                np.testing.assert_array_equal(baseline.rows(number), kept.rows(number))
                np.testing.assert_array_equal(baseline.targets(number), kept.targets(number))
        assert told == [(8, 24), (16, 24), (24, 24)]


@pytest.mark.parametrize("batch", range(1, CONTEXT))
def test_batches_and_pieces_change_nothing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int):
    with Baseline.open(file) as baseline:
        whole, nll = diverge(parrot(noise=1), baseline), base_nll(baseline)
    monkeypatch.setattr(logprobs, "_ELEMENTS_AT_A_TIME", 2 * VOCABULARY)
    told = []
    with record(parrot(batch=batch), some_windows(), tmp_path / "x.kld") as baseline:
        assert (tmp_path / "x.kld").read_bytes() == file.read_bytes()
        parts = diverge(parrot(noise=1, batch=batch), baseline, lambda done, of: told.append((done, of)))
        np.testing.assert_array_equal(base_nll(baseline), nll)
    for field in ("nll", "nll_base", "kld", "top", "top_base", "confidence", "tokens"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(parts, field))
    assert sorted(told) == told
    assert told[-1] == (24, 24)


def test_another_vocabulary_is_refused(file: Path):
    with Baseline.open(file) as baseline, pytest.raises(BaselineError, match="vocabulary of 12 words"):
        diverge(parrot(vocabulary=12), baseline)


def test_a_broken_model_leaves_nothing(tmp_path: Path):
    with pytest.raises(InferenceError, match="not a number"):
        record(parrot(fails_at=1), some_windows(), tmp_path / "base.kld")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_quantization_is_refused_as_the_original_is(file: Path, tmp_path: Path, value: float):
    with (
        Baseline.open(file) as baseline,
        pytest.raises(InferenceError, match=r"parrot.gguf: .* window 2 is not a number"),
    ):
        diverge(parrot(fails_at=2, value=value), baseline)
    with pytest.raises(InferenceError, match=r"parrot.gguf: .* window 2 is not a number"):
        record(parrot(fails_at=2, value=value), some_windows())


def test_a_place_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(OutputError):
        record(parrot(), some_windows(), tmp_path / "nowhere" / "base.kld")


def test_truncated_anywhere(file: Path):
    data = file.read_bytes()
    for length in [*range(24), len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(BaselineError):
            Baseline.open(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(BaselineError, match="promises"):
        Baseline.open(file)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_damage_is_an_error_or_harmless(tmp_path_factory, place, garbage):
    path = tmp_path_factory.mktemp("damage") / "base.kld"
    record(parrot(), some_windows(), path).close()
    data = bytearray(path.read_bytes())
    data[place : place + len(garbage)] = garbage
    path.write_bytes(data)
    with contextlib.suppress(PlannerError), Baseline.open(path) as baseline:
        assert baseline.tokens.max() < baseline.vocabulary
        assert np.isfinite(base_nll(baseline)).all()


def test_a_file_cut_short_while_it_is_open(tmp_path: Path):
    file = tmp_path / "large.kld"  # larger than what is read ahead
    record(parrot(vocabulary=100_000), some_windows(), file).close()
    with Baseline.open(file) as baseline:
        with file.open("r+b") as opened:
            opened.truncate(200)
        with pytest.raises(BaselineError, match="too early"):
            baseline.rows(2)


def test_what_is_a_file_of_log_probabilities(file: Path, tmp_path: Path):
    assert kind_at(file, BaselineError) == BASELINE
    if hasattr(os, "mkfifo"):  # nobody waits for a writer
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BaselineError, match="not a regular file"):
            Baseline.open(tmp_path / "pipe")
