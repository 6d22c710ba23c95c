"""Observers that add noise to what a model computes, as errors of its weights would."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.llama.collect.activations import Floats, ids_of, rows_of
from planner.llama.collect.collector import LOGITS
from planner.llama.graph import Node, Observer
from planner.llama.passes.paths import Path

__all__ = [
    "EMBEDDING",
    "OfEmbedding",
    "OfLogits",
    "OfStream",
    "OfWeight",
    "Trial",
    "energies",
    "of_error",
    "ordinary",
    "write",
]

Doubles = NDArray[np.float64]

SHARE = 1 / 64  # of noise: divergences stay in proportion to it, and are well above what 16 bits leave of zero
EMBEDDING = "token_embd.weight"
_MASSIVE = 30.0  # times the median energy: as of channels, in planner.measure.survey
_CHANNELS = 4096  # of what a weight reads, at a time


class Trial(Observer, Protocol):
    """An observer that adds noise. `shares`: how much of the stream's energy, or of its own, that was, by batch."""

    @property
    def shares(self) -> Sequence[float]:
        """How much noise there was."""


class OfWeight:
    """An observer that gives a weight a random error: noise in each of its numbers, in proportion to its row,
    `SHARE` of the energy of what it makes. `shares`: what of the stream behind it that is worth, by batch.

    Errors of a weight are alike for tokens that are alike, and what they have in common is not averaged away by
    attention, as noise would be that is new for every token. `rows`: the norms of the weight's rows, f32[channels].
    """

    def __init__(self, path: Path, rows: Floats, seed: int) -> None:
        self._path, self._rows, self._random = path, rows, np.random.default_rng(seed)
        self._added: Doubles = np.empty(0)  # what each token's noise is worth
        self.shares: list[float] = []

    def wants(self, node: Node) -> bool:
        """Return whether the node multiplies the weight, or is the stream behind it."""
        return _is_product(node, (self._path.weight,)) or _is_stream(node, self._path.place)

    def see(self, node: Node) -> None:
        """Add noise to the product; in the stream, see how much that is."""
        if node.operation == "ADD":
            stream, added = energies(rows_of(node.result)), self._added
            # those of the last block whose predictions are not asked for are gone
            added = added if len(added) == len(stream) else np.full_like(stream, added.mean())
            self.shares.append(float(np.mean(added[stream > 0] / stream[stream > 0])))
            return
        made = rows_of(node.result)
        halves = np.array_split(rows_of(node.sources[1]), 2)  # with an error each, as one of them says little
        noise = np.concatenate([of_error(half, self._rows, self._random) for half in halves])
        noise[~ordinary(noise)] = 0.0
        noise *= np.sqrt(np.float32(SHARE * _median_ratio(energies(made), energies(noise))))
        write(node, made + noise)
        self._added = np.square(noise) @ self._path.channels
        if self._path.norm is not None:
            energy = energies(made) / made.shape[1]
            self._added = np.divide(self._added, energy, out=np.zeros_like(energy), where=energy > 0)


class OfStream:
    """An observer that adds noise to the stream itself, the same energy for every token: `SHARE` of their harmonic
    mean, in what it is worth. For what experts write, who each have errors of their own, and what is scaled otherwise
    than by one norm before it is added. Behind norms, channels have noise as these scale them."""

    shares = (SHARE,)

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._random = path, np.random.default_rng(seed)

    def wants(self, node: Node) -> bool:
        """Return whether the node is the place."""
        return _is_stream(node, self._path.place)

    def see(self, node: Node) -> None:
        """Add noise to the result."""
        stream = rows_of(node.result)
        sizes = energies(stream)
        some, scales = sizes[sizes > 0], self._path.channels
        if len(some):
            size = np.sqrt(SHARE * len(some) / (1 / some).sum() / scales.sum())
            each = np.ones(1) if self._path.norm is None else np.sqrt(self._path.norm)
            noise = self._random.standard_normal(stream.shape, np.float32) * (size * each).astype(np.float32)
            write(node, stream + noise)


class OfEmbedding:
    """An observer that adds noise to the embeddings of tokens, the same for the same token: `SHARE` of their energy."""

    shares = (SHARE,)

    def wants(self, node: Node) -> bool:
        """Return whether the node looks embeddings up."""
        return node.operation == "GET_ROWS" and node.sources[0].name == EMBEDDING

    def see(self, node: Node) -> None:
        """Add noise to the result."""
        made = rows_of(node.result)
        tokens, which = np.unique(ids_of(node.sources[1]), return_inverse=True)
        noise = np.random.default_rng(0).standard_normal((len(tokens), made.shape[1]), np.float32)
        _add_share(node, made, noise[which.reshape(-1)])


class OfLogits:
    """An observer that adds noise to the logits of each word by the norm of its row, f32[words]: `SHARE` of their
    energy."""

    shares = (SHARE,)

    def __init__(self, norms: Floats) -> None:
        self._norms, self._random = norms, np.random.default_rng(0)

    def wants(self, node: Node) -> bool:
        """Return whether the node makes the logits."""
        return _is_product(node, LOGITS)

    def see(self, node: Node) -> None:
        """Add noise to the result."""
        made = rows_of(node.result)
        _add_share(node, made, self._random.standard_normal(made.shape, np.float32) * self._norms)


def of_error(read: Floats, rows: Floats, random: np.random.Generator) -> Floats:
    """Return what a random error of a weight makes of what that reads, f32[n, channels], for the norms of its rows: of
    signs, as so many of them add up to what numbers from any other distribution would."""
    noise = np.zeros((len(read), len(rows)), np.float32)
    for start in range(0, read.shape[1], _CHANNELS):
        part = read[:, start : start + _CHANNELS]
        shape = part.shape[1], len(rows)
        bits = np.frombuffer(random.bytes(-(-shape[0] * shape[1] // 8)), np.uint8)
        signs = np.unpackbits(bits, count=shape[0] * shape[1]).astype(np.float32).reshape(shape)
        signs *= 2
        signs -= 1
        noise += part @ signs
    return noise * rows


def ordinary(rows: Floats) -> NDArray[np.bool_]:
    """Return which tokens have no massive activation, by rows f32[n, channels], bool[n]. What such an activation is
    worth is another matter, and its token would make all the others' divergence."""
    sizes = energies(rows)
    return np.asarray(sizes <= _MASSIVE * np.median(sizes))


def _is_product(node: Node, weights: Container[str]) -> bool:
    return node.operation == "MUL_MAT" and node.sources[0].name in weights


def _is_stream(node: Node, place: str) -> bool:
    return node.operation == "ADD" and node.name == place


def energies(rows: Floats) -> Doubles:
    """Return the energy of each row, f64[n]."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _median_ratio(first: Doubles, second: Doubles) -> float:
    some = (first > 0) & (second > 0)
    return float(np.median(first[some] / second[some])) if some.any() else 0.0


def _add_share(node: Node, made: Floats, noise: Floats) -> None:
    """Add noise to rows f32[n, channels], of the same distribution in each: `SHARE` of a row's energy."""
    scale = np.sqrt(SHARE * energies(made) / np.square(noise).sum(axis=1, dtype=np.float64).mean())
    write(node, made + scale[:, None].astype(np.float32) * noise)


def write(node: Node, rows: Floats) -> None:
    """Replace a node's result by rows, f32[n, channels]."""
    node.result.write(np.ascontiguousarray(rows, np.float32).view(np.uint8).reshape(-1))
