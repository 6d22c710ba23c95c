"""Collect covariances in as many passes over the texts as memory asks for, and write them as they are finished.

The last blocks come first: a pass ends each batch when it has seen the last of its inputs, and the first one, which has
an importance matrix to collect too, has to run the whole model anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import UsageError, option
from planner.gguf.covariance import Covariances, Input
from planner.gguf.covariance_writer import CovarianceFile
from planner.gguf.sums import Sums
from planner.llama.collect.multiplier import Multiplier, products_bytes
from planner.llama.workers import Workers
from planner.sizes import format_size

__all__ = ["Passes", "divide"]

Floats = NDArray[np.float32]


def divide(inputs: Sequence[Input], memory: int) -> list[list[Input]]:
    """Divide inputs, in the order of the graph, into passes whose sums of products fit `memory` bytes: the last inputs
    first, within a pass in the order of the graph. Raises UsageError where one input does not fit."""
    passes: list[list[Input]] = []
    room = 0
    for one in reversed(inputs):
        needed = products_bytes(one)
        if needed > memory:
            raise UsageError(
                f"The covariance of what goes into {one.name} alone takes {format_size(needed, up=True)} of memory, "
                f"and there are {format_size(memory)} for it.",
                f"Give more with {option('memory')}.",
            )
        if not passes or needed > room:
            passes.append([])
            room = memory
        passes[-1].insert(0, one)
        room -= needed
    return passes


class Passes(Closing):
    """Covariances of `inputs` in the making; a context manager that leaves what is finished in the file `path`.

    `left` are the passes that remain, of which `multiplier` observes the first; `earlier` files' are added. Of a
    process before this one, inputs are `finished`, in the file, and its last pass had those of `current`. Raises
    OutputError, and UsageError as `divide`.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        sums: Sums,
        path: Path,
        *,
        memory: int,
        earlier: Sequence[Covariances],
        workers: Workers,
        finished: Sequence[str] = (),
        current: Sequence[str] = (),
    ) -> None:
        self._workers, self._earlier = workers, tuple(earlier)
        self.file = CovarianceFile(path, sums, inputs, resume=bool(finished))
        self.finished = list(finished) if self.file.resumed else []
        try:
            self.left = self._divided(inputs, current, memory)
        except BaseException:
            self.close()
            raise
        self.multiplier: Multiplier | None = None

    def close(self) -> None:
        """Close the file; what is finished stays in it."""
        self.file.close()

    def begin(self, *, later: bool) -> Multiplier:
        """Return the observer of the next pass; `later`: it need not run the whole model."""
        self.multiplier = Multiplier(self.left[0], self._workers, stops=later)
        return self.multiplier

    def goes_on(self, tokens: Mapping[str, Sequence[int]]) -> bool:
        """Return whether the first pass is the one in which so many rows had been seen of each input's matrices."""
        first = self.left[0] if self.left else []
        return {name: len(own) for name, own in tokens.items()} == {one.name: one.matrices for one in first}

    def _divided(self, inputs: Sequence[Input], current: Sequence[str], memory: int) -> list[list[Input]]:
        left = [one for one in inputs if one.name not in self.finished]
        begun = [one for one in left if one.name in current]
        if len(begun) == len(current) and 0 < sum(map(products_bytes, begun)) <= memory:
            return [begun, *divide([one for one in left if one not in begun], memory)]
        return divide(left, memory)

    @property
    def tokens(self) -> dict[str, list[int]]:
        """How many rows each matrix of this pass's inputs has."""
        assert self.multiplier is not None
        return {name: own.tolist() for name, own in self.multiplier.tokens.items()}

    @property
    def arrays(self) -> list[Floats]:
        """The sums of products of this pass."""
        assert self.multiplier is not None
        return [
            block
            for one in self.left[0]
            for products in self.multiplier.products[one.name]
            for block in products.blocks
        ]

    def end(self) -> None:
        """Write what the pass has collected. Raises ModelError for NaN, OutputError."""
        assert self.multiplier is not None
        self.multiplier.check()
        for one in self.left.pop(0):
            own = self.multiplier.products.pop(one.name)
            tokens = self.multiplier.tokens[one.name] + sum(file.tokens_of(one.name) for file in self._earlier)
            self.file.put(
                one,
                [[products.part(), *(file.part(one.name, matrix) for file in self._earlier)]
                 for matrix, products in enumerate(own)],
                tokens.tolist(),
            )  # fmt: skip
            self.finished.append(one.name)
        self.file.sync()
        self.multiplier = None
