"""What covariances of a model will take, found out from a few tokens before the texts are read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.errors import UsageError
from planner.gguf import Model
from planner.gguf.covariance import Covariances, Input
from planner.gguf.covariance_writer import check_mergeable
from planner.gguf.drafts import draft_heads
from planner.gguf.products import Products
from planner.gguf.sums import Sums
from planner.llama.collect.collector import Collector, Text
from planner.llama.collect.inputs import find_inputs
from planner.llama.collect.multiplier import products_bytes
from planner.llama.collect.passes import Passes
from planner.llama.engine import Engine
from planner.llama.loaded import GRAPH
from planner.llama.workers import Workers
from planner.memory import available_memory

__all__ = ["Expected", "Trial", "try_out"]

_TOKENS = 64  # timed: enough for most of the speed of a whole batch, and some seconds of a large model
# Of what is free beside the model. The rest is for what llama.cpp takes as it runs, and for the disk's buffers
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Expected:
    """What is to come: bytes of the file and of the largest pass's sums, passes over so many tokens, and seconds;
    `widest`: channels of the widest input."""

    file_bytes: int
    memory: int
    passes: int
    tokens: int
    seconds: float
    widest: int


@dataclass(frozen=True)
class Trial:
    """What a few tokens have shown: the `inputs` of the weights; the entries that an importance matrix will have,
    `sums`; seconds that a token takes, and for each width the products of a row.

    `memory` bytes are for sums of products, `most` for those that were begun in an earlier process; `used` experts see
    each token.
    """

    inputs: list[Input]
    sums: Sums
    earlier: tuple[Covariances, ...]
    seconds: float
    row_seconds: dict[int, float]
    memory: int
    most: int
    used: int

    def passes(self, path: Path, workers: Workers, finished: Sequence[str], current: Sequence[str]) -> Passes:
        """Return the passes that are left. Raises as Passes."""
        begun = sum(products_bytes(one) for one in self.inputs if one.name in current)
        memory = max(self.memory, begun) if begun <= self.most else self.memory
        return Passes(
            self.inputs, self.sums, path, memory=memory, earlier=self.earlier, workers=workers, finished=finished,
            current=current,
        )  # fmt: skip

    def has_room(self, passes: Passes, progress: Path) -> bool:
        """Return whether the disk takes the sums of products of a pass as well, twice as one replaces another."""
        return shutil.disk_usage(progress.parent).free >= 2 * _largest(passes)

    def expected(self, passes: Passes, tokens: int) -> Expected:
        """Return what is to be expected of passes over this many tokens."""
        order = {one.name: number for number, one in enumerate(self.inputs, 1)}
        shares = [max(order[one.name] for one in group) / len(order) for group in passes.left]
        if len(passes.left) and not passes.finished:
            shares[0] = 1.0  # the first pass runs the whole model
        rows = sum(self._rows(one) * self.row_seconds[one.width] for group in passes.left for one in group)
        seconds = tokens * (self.seconds * sum(shares) + rows)
        widest = max(one.width for one in self.inputs)
        return Expected(passes.file.nbytes, _largest(passes), len(passes.left), tokens, seconds, widest)

    def _rows(self, one: Input) -> int:
        """Return how many rows of an input there are for each token."""
        return min(one.matrices, self.used)


def try_out(
    engine: Engine,
    model: Model,
    sums: Sums,
    texts: Sequence[Text],
    *,
    output: bool,
    memory: int | None,
    earlier: Sequence[Covariances] = (),
) -> Trial:
    """Run a few tokens of the texts. `sums`: an importance matrix as it begins, which is spoilt.

    Raises CovarianceError for `earlier` covariances of another model, UsageError for a model none of whose weights can
    have any, and what the engine raises.
    """
    inputs = find_inputs(engine, model, output=output)
    if not inputs:
        raise UsageError(f"{model.path}: llama.cpp shows no input of a weight that it quantizes.")
    check_mergeable(earlier, {one.name: one for one in inputs})
    before = engine.observer, engine.heads
    engine.observer, engine.heads = Collector(sums, output=output), Collector(sums, only=draft_heads(model))
    try:
        tokens = texts[0].windows[0, :_TOKENS]
        numbers = np.arange(len(tokens), dtype=np.int32)
        begin = time.monotonic()
        engine.decode(tokens, numbers, np.zeros_like(numbers), np.ones(len(tokens), np.bool_))
        seconds = (time.monotonic() - begin) / len(tokens)
        engine.forget()
    finally:
        engine.observer, engine.heads = before
    least, whole = max(map(products_bytes, inputs)), sum(map(products_bytes, inputs))
    free = available_memory()
    beside = whole if free is None else max(least, free - model.size)
    chosen = max(least, int(_SHARE * beside)) if memory is None else memory
    return Trial(
        inputs, sums, tuple(earlier), seconds, {width: _row_seconds(width, engine) for width in _widths(inputs)},
        memory=chosen, most=beside if memory is None else memory,
        used=max(1, model.parameter("expert_used_count") or 1),
    )  # fmt: skip


def _widths(inputs: Sequence[Input]) -> set[int]:
    return {one.width for one in inputs}


def _row_seconds(width: int, engine: Engine) -> float:
    """Return the time that the products of a row take, in batches."""
    products = Products(width)
    rows = np.full((GRAPH, width), 1e-3, np.float32)
    times = []
    for _ in range(2):  # the first meets memory that was never touched
        begin = time.monotonic()
        engine.workers.map(lambda add: add(), products.additions(rows))
        times.append(time.monotonic() - begin)
    return min(times) / GRAPH


def _largest(passes: Passes) -> int:
    return max((sum(map(products_bytes, group)) for group in passes.left), default=0)
