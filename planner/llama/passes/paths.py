"""Where a model's weights write to the residual stream, what lies between, and what energy is worth there, channel by
channel, as its graph shows it; and which other weights work inside of its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.gguf import Model
from planner.gguf.llama_cpp import why_left_alone
from planner.gguf.sums import Sums
from planner.llama.collect.activations import rows_of
from planner.llama.collect.collector import Collector
from planner.llama.graph import Node, origin
from planner.measure.anatomy import Anatomy
from planner.names.gguf import role_of

__all__ = ["Finder", "Path"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_F32 = 0  # enum ggml_type
_NORMS = ("RMS_NORM", "NORM")
_READERS = 6  # of the norms that read the stream: those of the next three blocks


@dataclass(frozen=True)
class Path:
    """From a weight to the stream: the `place` there, by the name of the sum, whether the weight's product is `added`
    there, perhaps behind a norm. `norm` has the squared weights of norms between, f64[channels], None without any, and
    `worth` is what energy in each channel of the stream is worth at the place, f64[channels]."""

    weight: str
    place: str
    added: bool
    norm: Doubles | None
    worth: Doubles

    @property
    def is_plain(self) -> bool:
        """True if all channels are alike."""
        return self.norm is None and bool((self.worth == 1).all())

    @property
    def channels(self) -> Doubles:
        """What energy in each channel of the weight's outputs is worth, f64[channels]: behind norms, over the mean
        energy of its channels."""
        return self.worth if self.norm is None else self.worth * self.norm


class Finder:
    """An observer that finds the paths of a model's weights to the stream, while it reads some windows."""

    def __init__(self, context: int) -> None:
        self._collector = Collector(Sums(context))
        self._made: dict[int, str] = {}  # what a weight has made, and what became of it, by where that is
        self._sums: dict[str, set[int]] = {}  # what is added up, by the name of the sum
        self._shares: dict[str, Doubles] = {}  # of each channel in the energy of a sum, by its name
        self._normed: dict[int, str] = {}  # the name of the sum that a norm has read, by where its result is
        self._readers: dict[str, str] = {}  # the weights of that norm, by the name of the sum
        self._order: dict[str, None] = {}  # weights that make products and sums, as they come

    @property
    def written(self) -> Mapping[str, str]:
        """The name of the place behind each weight."""
        return self._collector.places

    def inner(self, model: Model) -> list[list[str]]:
        """Return the weights of blocks that do not write to the stream, but are quantized, in groups of which no two
        come before the same place."""
        groups: list[list[str]] = []
        places, beside = set(self.written.values()), 0
        for name in self._order:
            if name in places:
                beside = 0
            elif self._is_inner(name, model):
                if beside == len(groups):
                    groups.append([])
                groups[beside].append(name)
                beside += 1
        return groups

    def _is_inner(self, name: str, model: Model) -> bool:
        tensor = model.by_name.get(name)
        if tensor is None or name in self.written or role_of(name)[0] is None:
            return False
        return why_left_alone(name, tensor.shape, model.architecture, tensor.format) is None

    def wants(self, node: Node) -> bool:
        """Return whether the collector of sums wants the node."""
        if node.operation == "MUL_MAT":
            self._made[origin(node.result)] = node.sources[0].name
            self._order[node.sources[0].name] = None
        elif node.operation == "MUL_MAT_ID":
            self._order[node.sources[0].name] = None
        elif node.operation == "ADD":
            self._order[node.name] = None
            parts = [origin(source) for source in node.sources[:2]]
            self._sums[node.name] = set(parts)
            if node.sources[1].name.endswith(".bias"):  # what comes out of the product is as far off as before
                self._follow(parts[0], node)
        elif node.operation in (*_NORMS, "GET_ROWS") and node.sources[0].type == _F32:
            self._follow(origin(node.sources[0]), node)
            if node.operation in _NORMS:
                self._normed[origin(node.result)] = node.sources[0].name
        elif node.operation == "MUL" and node.sources[1].name.endswith("norm.weight"):
            source = origin(node.sources[0])
            self._follow(source, node)
            if source in self._normed:
                self._readers[self._normed[source]] = node.sources[1].name
        return self._collector.wants(node)

    def see(self, node: Node) -> None:
        """Show it the node."""
        self._collector.see(node)
        if node.operation == "ADD":
            rows = rows_of(node.result).astype(np.float64)
            some = rows[rows.any(axis=1)]
            self._shares[node.name] = np.mean(some**2 / np.square(some).sum(axis=1, keepdims=True), axis=0)

    def paths(self, model: Model, anatomy: Anatomy) -> dict[str, Path]:
        """Return the paths that were found, by weight.

        Where norms scale what is written, some channels have 10³ times the energy of others, most of which those who
        read the stream take away again. There, energy in a channel is worth what the norms of the next three blocks
        make of it, over all that they make of the stream as it is at the place. Elsewhere all channels are alike.
        """
        places = list(dict.fromkeys(self.written.values()))
        norms = {name: _norm_behind(anatomy, name) for name in self.written}
        scaled = any(norm is not None for norm in norms.values())
        paths = {}
        for name, place in self.written.items():
            next_places = places[places.index(place) :][:_READERS]
            readers = [self._readers[each] for each in next_places if each in self._readers] if scaled else []
            squares = [np.square(model.rows(model[reader], 0, 1)[0].astype(np.float64)) for reader in readers]
            worth = [each / (each @ self._shares[place]) for each in squares]
            paths[name] = Path(
                name,
                place,
                name in {self._made.get(part) for part in self._sums[place]},
                norms[name],
                np.mean(worth, axis=0) if worth else np.ones(model[name].rows_per_matrix),
            )
        return paths

    def _follow(self, source: int, node: Node) -> None:
        if source in self._made:
            self._made[origin(node.result)] = self._made[source]


def _norm_behind(anatomy: Anatomy, name: str) -> Doubles | None:
    number, role = role_of(name)
    return None if number is None or number not in anatomy.blocks else anatomy.blocks[number].norm_behind(role)
