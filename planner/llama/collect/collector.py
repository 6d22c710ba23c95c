"""Add up the sums of an importance matrix while a model reads a text.

What counts, and how, follows `collect_imatrix` in llama.cpp's `tools/imatrix/imatrix.cpp`: every multiplication of a
weight of a block with at least 16 columns, and every multiplication with chosen experts. Beside the squares, the
activations themselves are added up, and for what writes to the residual stream both once more (`stream`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import ModelError
from planner.gguf.sums import Sums, TensorSums
from planner.llama.collect.activations import Group, activations_of, not_finite
from planner.llama.collect.stream import StreamCollector
from planner.llama.engine import Engine
from planner.llama.graph import Node

__all__ = ["LOGITS", "Collector", "Text", "collect", "is_collected"]

Floats = NDArray[np.float32]

_F32 = 0  # enum ggml_type
_BLOCK_BYTES = 1 << 19  # of rows and squares at a time, which stay in the cache
_LEAST_COLUMNS = 16  # smaller batches are left out, as llama-imatrix does
# What makes the logits; where that is the embedding too, it goes by that name, and nothing else is multiplied with it
LOGITS = ("output.weight", "token_embd.weight")


@dataclass(frozen=True)
class Text:
    """A text's name, for the file, and its windows of tokens, i32[n, context]."""

    name: str
    windows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Step:
    """Totals, f32[matrices, 2, n], before and after some activations were added: not computed again for the next
    weight with the same activations and the same totals."""

    matrices: NDArray[np.intp]
    rows: NDArray[np.int64]
    before: Floats
    after: Floats


class Collector:
    """An observer that adds what goes into the weights to `sums`. `output`: also into what makes the logits.

    Float32, one row after the other: the bits that llama-imatrix has, from the same build of llama.cpp. `only` these
    weights, of draft heads: what they read, and no stream, of which they are no part.
    """

    def __init__(self, sums: Sums, *, output: bool = False, only: Collection[str] | None = None) -> None:
        self._sums, self._output, self._only = sums, output, only
        self._last: tuple[object, _Step] | None = None
        self._seen: set[str] = set()  # weights since activations were last known to be new
        self._stream = StreamCollector(sums)

    @property
    def places(self) -> Mapping[str, str]:
        """By the name of each weight that has written to the stream, that of the sum in the graph that it became."""
        return self._stream.places

    def wants(self, node: Node) -> bool:
        """Return whether the node multiplies a weight that an importance matrix has, or may be the stream."""
        if self._only is not None:
            return is_collected(node, output=False) and node.sources[0].name in self._only
        return is_collected(node, output=self._output) or self._stream.wants(node)

    def see(self, node: Node) -> None:
        """Add up the activations of a node. Raises ModelError for NaN and infinity, and for sums of another size."""
        if node.operation == "ADD":
            self._stream.see(node)
            return
        weight, activations = node.sources[:2]
        if weight.name in self._seen:  # another batch, whose tensors may lie where the last one's lay
            self._seen.clear()
            self._last = None
        self._seen.add(weight.name)
        routed = node.operation == "MUL_MAT_ID"
        matrices, width = weight.shape[2] * weight.shape[3], activations.shape[0]
        entry = self._entry(weight.name, matrices, width, experts=matrices if routed else 1)
        key = routed, matrices, *((source.address, source.name) for source in node.sources[1:])
        step = self._last[1] if self._last is not None and self._last[0] == key else None
        if step is None or not np.array_equal(_totals(entry, step.matrices, width), step.before):
            step = _reckon(entry, activations_of(node), width)
            if not np.isfinite(step.after).all():
                raise not_finite(weight.name)
            self._last = key, step
        entry.sum2.reshape(-1, width)[step.matrices] = step.after[:, 0]
        if entry.sums is not None:
            entry.sums.reshape(-1, width)[step.matrices] = step.after[:, 1]
        if self._only is None:
            self._stream.note(node, first=not entry.counts.any())
        if routed:
            entry.counts[step.matrices] += step.rows
        else:  # matrices that are not chosen among share one count
            entry.counts += int(step.rows.sum()) // matrices

    def _entry(self, name: str, matrices: int, width: int, experts: int) -> TensorSums:
        entry = self._sums.tensors.get(name)
        if entry is None:
            entry = self._sums.tensors[name] = TensorSums.zeros(width * matrices, experts)
        if len(entry.sum2) != width * matrices or not (entry.fits(experts) or experts == 1):
            raise ModelError(
                f"{name} has {width * matrices:,} values for {experts:,} experts here, and "
                f"{len(entry.sum2):,} for {len(entry.counts):,} in what was collected before.",
                "Merge only importance matrices of this model.",
            )
        if entry.fits(experts):
            entry.set_experts(experts)
        return entry


def is_collected(node: Node, *, output: bool) -> bool:
    """Return whether the node multiplies a weight that an imatrix has; `output`: what makes the logits too."""
    if node.operation == "MUL_MAT_ID":
        return node.sources[1].type == _F32
    if node.operation != "MUL_MAT":
        return False
    weight, activations = node.sources[:2]
    if activations.type != _F32 or activations.shape[1] < _LEAST_COLUMNS:
        return False
    return weight.name.startswith("blk.") or (output and weight.name in LOGITS)


def collect(engine: Engine, texts: Sequence[Text], start: int = 0) -> Iterator[int]:
    """Let the engine's observer see the windows of all texts from number `start` on, which has to be a multiple of
    `engine.windows_at_a_time`, or that of all windows.

    Yields how many are done, whenever the sums are of whole windows: there they can be saved. Raises ValueError for
    another `start`, and what the engine raises.
    """
    windows = np.concatenate([text.windows for text in texts])
    if start % engine.windows_at_a_time and start < len(windows):
        raise ValueError(f"windows are run {engine.windows_at_a_time} at a time, and {start} is within")
    for done in engine.read(windows[start:]):
        yield start + done


def _totals(entry: TensorSums, matrices: NDArray[np.intp], width: int) -> Floats:
    """Return sums of squares and of activations so far, f32[matrices, 2, n]; zeros where these are not known."""
    sum2 = entry.sum2.reshape(-1, width)[matrices]
    sums = np.zeros_like(sum2) if entry.sums is None else entry.sums.reshape(-1, width)[matrices]
    return np.stack([sum2, sums], axis=1)


def _reckon(entry: TensorSums, groups: Sequence[Group], width: int) -> _Step:
    matrices = np.unique(np.array([group.matrix for group in groups], np.intp))
    rows = np.zeros(len(matrices), np.int64)
    before = _totals(entry, matrices, width)
    after = before.copy()
    for group in groups:
        place = int(np.searchsorted(matrices, group.matrix))
        rows[place] += len(group.rows)
        _add_rows(after[place], group.rows)
    return _Step(matrices, rows, before, after)


def _add_rows(total: Floats, rows: Floats) -> None:
    """Add rows f32[rows, n] and their squares to `total`, f32[2, n], one after the other."""
    width = rows.shape[1]
    block = min(len(rows), max(16, _BLOCK_BYTES // (8 * width)))
    buffer = np.empty((block + 1, 2, width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found afterwards
        for start in range(0, len(rows), block):
            some = rows[start : start + block]
            used = buffer[: len(some) + 1]
            used[0] = total
            np.square(some, out=used[1:, 0])
            used[1:, 1] = some
            # along the first axis numpy adds row to row, with no regrouping
            np.add.reduce(used, axis=0, out=total)
