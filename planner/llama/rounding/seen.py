"""What goes into weights, and the stream that they write to, of all tokens of a graph together.

A weight writes to the residual stream where a sum of two matrices of its shape is made of its product. In the last
block, llama.cpp takes the rows that are predicted from first, which are all of them here; a bias may be added first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.llama.collect.activations import Floats, ids_of, rows_of
from planner.llama.collect.collector import is_collected
from planner.llama.collect.inputs import look
from planner.llama.engine import Engine
from planner.llama.graph import Enough, Node, origin
from planner.names.gguf import ATTENTION_WRITERS, FFN_WRITERS, role_of

__all__ = ["TABLE", "Seen", "Seer", "Whole", "find_scale", "find_writers"]

TABLE = "token_embd.weight"
_EMBEDDED = "embd"  # what llama.cpp calls rows of it
_KEPT = (b"RESHAPE", b"GET_ROWS")
_WRITERS = (*ATTENTION_WRITERS, *FFN_WRITERS)  # beginnings of roles


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one graph: its words, i32[tokens]; rows of inputs, name → f32[tokens, n]; of the stream before a weight's
    product is added to it, weight → f32[tokens, m]; and of what a node of that name makes, f32[tokens, m]."""

    words: NDArray[np.int32]
    inputs: dict[str, Floats] = field(default_factory=dict)
    streams: dict[str, Floats] = field(default_factory=dict)
    results: dict[str, Floats] = field(default_factory=dict)


class Whole:
    """What all graphs of a text show, by the numbers of its words: those of a table of places."""

    def __init__(self, words: int) -> None:
        self._words = words
        self.inputs: dict[str, Floats] = {}
        self.streams: dict[str, Floats] = {}
        self.results: dict[str, Floats] = {}

    def take(self, seen: Seen) -> None:
        """Add what a graph shows."""
        for mine, shown in ((self.inputs, seen.inputs), (self.streams, seen.streams), (self.results, seen.results)):
            for name, rows in shown.items():
                if name not in mine:
                    mine[name] = np.empty((self._words, rows.shape[1]), np.float32)
                mine[name][seen.words] = rows


class Seer:
    """An observer that hands what each graph shows of some `inputs`, of the streams before some `writers`, and of some
    `results`, to `take`, and then ends the graph."""

    def __init__(
        self,
        take: Callable[[Seen], None],
        inputs: Collection[str] = (),
        writers: Collection[str] = (),
        results: Collection[str] = (),
    ) -> None:
        self._inputs, self._writers, self._results, self._take = set(inputs), set(writers), set(results), take
        self._seen = Seen(np.empty(0, np.int32))
        self._products: dict[str, Floats] = {}
        self._sums = _Sums()

    def wants(self, node: Node) -> bool:
        """Return whether the node reads words or an input, writes to the stream, or is its sum or a result."""
        if node.name in self._results or _reads_words(node):
            return True
        if node.operation == "ADD":
            return self._sums.writer(node) in self._writers
        if not is_collected(node, output=True):
            return False
        name = node.sources[0].name
        if name in self._writers:
            self._sums.note(node)
        return name in self._writers or name in self._inputs

    def see(self, node: Node) -> None:
        """Take down what the node shows. Raises Enough after the last of it."""
        seen = self._seen
        if _reads_words(node):  # a graph begins
            seen = self._seen = Seen(ids_of(node.sources[1]).reshape(-1).copy())
            self._products.clear()
            return
        if node.name in self._results:
            seen.results[node.name] = rows_of(node.result).copy()
        if node.operation == "ADD":
            writer = self._sums.writer(node)
            if writer in self._writers:
                seen.streams[writer] = rows_of(node.result) - self._products.pop(writer)
        elif is_collected(node, output=True):
            name = node.sources[0].name
            if name in self._inputs:
                seen.inputs[name] = rows_of(node.sources[1]).copy()
            if name in self._writers:
                self._products[name] = rows_of(node.result).copy()
        whole = len(seen.inputs), len(seen.streams), len(seen.results)
        if whole == (len(self._inputs), len(self._writers), len(self._results)):
            self._sums = _Sums()
            self._take(seen)
            raise Enough


class _Sums:
    """Which sums of a graph are of the stream and the product of a weight that was noted."""

    def __init__(self) -> None:
        self._products: dict[int, str] = {}

    def note(self, node: Node) -> None:
        """Take a multiplication for that of a weight that may write to the stream."""
        self._products[node.result.address] = node.sources[0].name

    def writer(self, node: Node) -> str | None:
        """Return the weight whose product is added to the stream by a sum."""
        for source, other in (node.sources[:2], node.sources[1::-1]):
            name = self._products.get(origin(source, _KEPT))
            if name is not None and other.shape == source.shape == node.result.shape:
                return name
            if name is not None and other.shape[1:] == (1, 1, 1):
                self._products[node.result.address] = name
        return None


class _Scale:
    """An observer that sees by what the embedding of the first word, f32[n], is multiplied."""

    def __init__(self, row: Floats) -> None:
        self._row, self.factor = row, 1.0

    def wants(self, node: Node) -> bool:
        return node.operation == "SCALE" and node.sources[0].name == _EMBEDDED

    def see(self, node: Node) -> None:
        place = int(np.abs(self._row).argmax())  # what was multiplied may be written over
        self.factor = float(rows_of(node.result)[0, place] / self._row[place]) if self._row[place] else 1.0


def find_scale(engine: Engine, row: Floats) -> float:
    """Return by what embeddings are multiplied before they are the stream, by that of the first word, f32[n]. Runs a
    few tokens, as `look` does. Raises what the engine raises."""
    scale = _Scale(row)
    look(engine, scale)
    return scale.factor


class _Finder:
    """An observer that notes which weights write to the stream. It needs no data."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self._sums = _Sums()

    def wants(self, node: Node) -> bool:
        if node.operation == "ADD":
            writer = self._sums.writer(node)
            if writer is not None:
                self.found.setdefault(writer, node.result.shape[0])
        elif (
            node.operation == "MUL_MAT"
            and is_collected(node, output=False)
            and role_of(node.sources[0].name)[1].startswith(_WRITERS)
        ):
            self._sums.note(node)
        return False

    def see(self, node: Node) -> None:
        raise AssertionError("nothing is wanted")


def find_writers(engine: Engine) -> Mapping[str, int]:
    """Return which weights' products are added to the residual stream as they are, and its channels. Runs a few tokens,
    as `look` does. Raises what the engine raises."""
    finder = _Finder()
    look(engine, finder)
    return finder.found


def _reads_words(node: Node) -> bool:
    return node.operation == "GET_ROWS" and node.sources[0].name == TABLE
