"""What errors inside of blocks add to the residual stream, as a model shows it that runs windows of a text twice, side
by side: the twin of a window has errors, and the window none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from planner.llama.collect.activations import Floats, activations_of, rows_of
from planner.llama.graph import Enough, Node
from planner.llama.passes.noise import energies, of_error, ordinary, write

__all__ = ["INNER_SHARE", "OfTwins"]

Doubles = NDArray[np.float64]

INNER_SHARE = 1 / 256  # of the energy of what a weight makes: about as much as types of 4 bits lose
_LEAST = 1e-30  # of a norm that is divided by


class OfTwins:
    """An observer of batches whose second half is the first once more. There it gives weights a random error, each its
    own, `INNER_SHARE` of the energy of what it makes; sees, wherever something is added to the stream, what share of
    the stream's energy comes of it; and takes that away again, so that every block is disturbed alone.

    `rows`: the norms of the weights' rows, f32[outputs], by weight, of which no two come before the same place.
    `worth`: what energy in each channel of the stream is worth, f64[channels], by place, in the order of the graph.
    `tokens` is how many a batch has. Tokens with a massive activation have no error. It is in the mean of what a weight
    reads, if `steady`, else in what varies between tokens: squared, in inverse proportion to the root of a channel's
    energy, between types whose errors are as large in all channels and those that spare the large ones. `shares`: what
    came of it, by weight and place, of each batch.
    """

    def __init__(self, rows: Mapping[str, Floats], worth: Mapping[str, Doubles], tokens: int, *, steady: bool) -> None:
        self._rows, self._worth, self._tokens, self._steady = rows, worth, tokens, steady
        self._random = np.random.default_rng(0)
        *_, self._last = worth
        self._disturbed: str | None = None  # the weight that had an error since the last place
        self.shares: dict[tuple[str, str], list[float]] = {}

    def wants(self, node: Node) -> bool:
        """Return whether the node multiplies one of the weights, or is the stream behind a write."""
        if node.operation == "ADD":
            return node.name in self._worth and math.prod(node.result.shape[1:]) % self._tokens == 0
        if node.operation not in ("MUL_MAT", "MUL_MAT_ID") or node.sources[0].name not in self._rows:
            return False
        # what is cut by heads is not one row a token
        return node.operation == "MUL_MAT_ID" or math.prod(node.result.shape[1:]) == self._tokens

    def see(self, node: Node) -> None:
        """Add noise to the twins' product; in the stream, see what came of it, and make the twins alike again. Raises
        Enough behind the last write."""
        own, twins = np.split(rows_of(node.result), 2)
        if node.operation != "ADD":
            self._disturbed = node.sources[0].name
            write(node, np.concatenate([own, twins + self._noise(node, own)]))
            return
        if self._disturbed is not None:
            stream, errors = energies(own), np.square(twins - own) @ self._worth[node.name]
            share = float(np.mean(errors[stream > 0] / stream[stream > 0]))
            self.shares.setdefault((self._disturbed, node.name), []).append(share)
        self._disturbed = None
        write(node, np.concatenate([own, own]))
        if node.name == self._last:
            raise Enough

    def _noise(self, node: Node, own: Floats) -> Floats:
        """Return noise in what the weight makes of the twins, f32[n, outputs]: of each expert by itself."""
        norms = self._rows[node.sources[0].name].reshape(-1, own.shape[1])
        groups, noise = activations_of(node), np.zeros_like(own)
        read = np.empty((2 * len(own), groups[0].rows.shape[1]), np.float32)
        for group in groups:
            read[group.outputs] = group.rows
        read = read[len(own) :]
        some = ordinary(read)
        for group in groups:
            rows = group.outputs[group.outputs >= len(own)] - len(own)
            rows = rows[some[rows]]
            if len(rows):
                noise[rows] = self._of_matrix(read[rows], norms[group.matrix])
        if noise.any():
            noise *= np.sqrt(np.float32(INNER_SHARE * energies(own)[some].sum() / energies(noise).sum()))
        return noise

    def _of_matrix(self, read: Floats, rows: Floats) -> Floats:
        # of each token as much of the mean as it has: one that all others attend to may have nothing of it
        mean = read.mean(axis=0)
        direction = mean / max(np.linalg.norm(mean), _LEAST)
        along = read @ direction
        if self._steady:  # what a random error makes of one row is random
            return np.outer(along, self._random.standard_normal(len(rows), np.float32) * rows)
        second = np.square(read).mean(axis=0)
        errors = np.divide(1, np.sqrt(np.sqrt(second)), out=np.zeros_like(second), where=second > 0)
        return of_error((read - np.outer(along, direction)) * errors, rows, self._random)
