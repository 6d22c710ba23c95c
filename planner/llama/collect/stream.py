"""The residual stream, as those who read it see it, beside what goes into the weights that write to it.

What a write's error costs depends on how large the stream is that it is added to, token by token: the first token of a
text may have 10⁴ times the energy of the others, and rules every mean over tokens while it says nothing of them. So
each token counts by 1/|s|², `s` being the stream after the write. In the graph the stream is the last sum of two
matrices of its shape before a norm reads it, or those of its rows that are predicted from; perhaps multiplied by a
number that the block has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.gguf.entry import StreamSums
from planner.gguf.sums import Sums
from planner.llama.collect.activations import Group, activations_of, values_of
from planner.llama.graph import Node
from planner.names.gguf import ATTENTION_WRITERS, FFN_WRITERS, LAYER_WRITER, role_of

__all__ = ["StreamCollector"]

Floats = NDArray[np.float32]

_F32 = 0  # enum ggml_type
_READS = ("RMS_NORM", "NORM", "GET_ROWS")
_WRITERS = (*ATTENTION_WRITERS, *FFN_WRITERS, LAYER_WRITER)  # beginnings of roles


@dataclass(frozen=True, slots=True)
class _Write:
    """What a weight has read in this batch, until the stream is known that it has written to; `first`: nothing was
    summed up before."""

    first: bool
    matrices: int
    experts: int
    width: int
    groups: Sequence[Group]


class StreamCollector:
    """Adds to the `stream` of the sums of each weight that writes to the residual stream.

    Part of an observer: `wants` has to be asked of every node, in order; `note` is for the multiplications by weights.
    """

    def __init__(self, sums: Sums) -> None:
        self._sums = sums
        self.places: dict[str, str] = {}  # by the name of a weight, that of the stream behind it in the graph
        self._writes: dict[str, _Write] = {}
        self._channels = 0  # of the stream
        self._address, self._name = 0, ""  # of the sum that may be the stream
        self._energy: NDArray[np.float64] | None = None  # of its tokens
        self._direction: Floats | None = None  # Σ s/|s|

    def wants(self, node: Node) -> bool:
        """Return whether `see` is to be called with a node that may be the stream; a norm that reads it ends the
        wait."""
        if not self._writes:
            return False
        reads = bool(node.sources) and node.sources[0].address == self._address
        if reads and node.operation in _READS:
            self._add()
        elif reads and node.operation == "MUL" and node.sources[1].shape == (1, 1, 1, 1):
            self._address = node.result.address
        return node.operation == "ADD" and self._may_be_stream(node)

    def see(self, node: Node) -> None:
        """Look at a sum that may be the stream."""
        stream = values_of(node.result)[0, 0]
        energy = np.einsum("ij,ij->i", stream, stream, dtype=np.float64)
        scale = np.divide(1.0, np.sqrt(energy), out=np.zeros_like(energy), where=energy > 0)
        self._address, self._name, self._energy = node.result.address, node.name, energy
        self._direction = np.einsum("i,ij->j", scale.astype(np.float32), stream)

    def note(self, node: Node, *, first: bool) -> None:
        """Keep what goes into a weight, if it is one that writes to the stream; `first`: before any of its sums."""
        weight, routed = node.sources[0], node.operation == "MUL_MAT_ID"
        block, role = role_of(weight.name)
        if not role.startswith(_WRITERS):
            return
        if weight.name in self._writes or any((role_of(name)[0] or 0) > (block or 0) for name in self._writes):
            self._writes.clear()  # another batch, and the last one's stream was never read
        self._channels, self._address = weight.shape[1], 0
        groups = [replace(group, rows=group.rows.copy()) for group in activations_of(node)]
        matrices = weight.shape[2] * weight.shape[3]
        self._writes[weight.name] = _Write(first, matrices, matrices if routed else 1, weight.shape[0], groups)

    def _may_be_stream(self, node: Node) -> bool:
        one, other = node.sources[:2]
        return (
            one.shape == other.shape and one.type == _F32 and one.shape[0] == self._channels and one.shape[2:] == (1, 1)
        )

    def _add(self) -> None:
        assert self._energy is not None
        assert self._direction is not None
        weights = np.divide(1.0, self._energy, out=np.zeros_like(self._energy), where=self._energy > 0)
        total = np.concatenate([[weights.sum(), len(weights)], self._direction]).astype(np.float32)
        for name, write in self._writes.items():
            self.places[name] = self._name
            entry = self._sums.tensors[name]
            if entry.stream is None and write.first:
                values = write.width * write.matrices
                entry.stream = StreamSums.zeros(values, write.experts, len(self._direction))
            if entry.stream is not None:  # else it is not known of what was added up before
                _add_weighted(entry.stream, write, weights)
                entry.stream.stream += total
        self._writes.clear()


def _add_weighted(sums: StreamSums, write: _Write, weights: NDArray[np.float64]) -> None:
    sum2, plain = (array.reshape(-1, write.width) for array in (sums.sum2, sums.sums))
    for group in write.groups:
        own = weights[group.tokens].astype(np.float32)
        # no matrix product: so few numbers are not worth the threads of BLAS, which wait for each other
        sum2[group.matrix] += np.einsum("i,ij->j", own, np.square(group.rows))
        plain[group.matrix] += np.einsum("i,ij->j", own, group.rows)
        sums.weights[group.matrix if write.experts > 1 else 0] += own.sum()
