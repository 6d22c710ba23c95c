"""Run a model on texts that begin alike, with their common beginning run once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.llama.loaded import MOST_SEQUENCES, LoadedModel, Memory

__all__ = ["BranchedEngine"]


class BranchedEngine(LoadedModel):
    """A loaded model with one memory of `context` tokens, which up to `branches` sequences share; the rest is as in
    `LoadedModel`. Raises ValueError for more branches than tokens, or than llama.cpp has."""

    def __init__(
        self, path: Path, *, context: int, branches: int, threads: int | None = None, gpu_layers: int = 0
    ) -> None:
        if branches > min(context, MOST_SEQUENCES):  # llama.cpp would abort the process
            raise ValueError(f"{branches} branches need a context of as many tokens, and there are {context}")
        self.context, self.branches = context, branches
        super().__init__(
            path, lambda _: Memory(context, branches, shared=True), positions=0, threads=threads,
            gpu_layers=gpu_layers, observer=None, writable=False, predicts=True,
        )  # fmt: skip

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
        shared: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]:
        """Run tokens as `LoadedModel.decode` does, each of which may belong to several sequences: `shared` of them,
        from its `sequences` on. Raises as that does."""
        widths = np.ones(len(tokens), np.int32) if shared is None else shared
        return self._decode(tokens, positions, sequences, outputs, widths)
