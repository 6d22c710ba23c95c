"""Measure speed in tokens per second, of prompts and of generation, as llama-bench does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.llama.engine import Engine

__all__ = ["Speed", "bench"]

Kind = Literal["pp", "tg"]


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one test: `pp512` is a prompt of 512 tokens, `tg128` the generation of 128.

    `rates` are those of every repetition.
    """

    kind: Kind
    tokens: int
    rates: tuple[float, ...]

    @property
    def test(self) -> str:
        """Name of the test in llama-bench's tables."""
        return f"{self.kind}{self.tokens}"

    @property
    def mean(self) -> float:
        """Mean of the repetitions."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Standard deviation of a repetition; 0 where there is only one."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


def bench(
    path: Path,
    *,
    prompt: int = 512,
    generation: int = 128,
    repetitions: int = 5,
    threads: int | None = None,
    gpu_layers: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Speed]:
    """Measure a model with random tokens, `prompt` and `generation` of them (0 leaves a test out).

    Every test has a context of its own size and a run beforehand that does not count. `progress` is told the
    file and test, and how many runs are done, of how many. Raises what `Engine` raises.
    """
    tests: list[tuple[Kind, int]] = [("pp", prompt), ("tg", generation)]
    found = []
    for kind, count in tests:
        if not count:
            continue
        with Engine(path, context=count, threads=threads, gpu_layers=gpu_layers, windows_at_a_time=1) as engine:
            rates = []
            _run(engine, kind, count if kind == "pp" else 1)
            for number in range(repetitions):
                if progress:
                    progress(f"{path.name} {kind}{count}", number, repetitions)
                engine.forget()
                began = time.perf_counter()
                _run(engine, kind, count)
                rates.append(count / (time.perf_counter() - began))
        found.append(Speed(kind, count, tuple(rates)))
    return found


def _run(engine: Engine, kind: Kind, count: int) -> None:
    """Run random tokens: as a prompt in batches of which the last token's logits are wanted, or one by one."""
    tokens = np.random.default_rng(count).integers(engine.vocabulary_size, size=count, dtype=np.int32)
    if engine.adds_bos:
        tokens[0] = engine.bos
    step = engine.batch_tokens if kind == "pp" else 1
    for start in range(0, count, step):
        _decode(engine, tokens[start : start + step], start)


def _decode(engine: Engine, tokens: NDArray[np.int32], start: int) -> None:
    count = len(tokens)
    positions = np.arange(start, start + count, dtype=np.int32)
    outputs = np.arange(count) == count - 1
    engine.decode(tokens, positions, np.zeros(count, np.int32), outputs)
