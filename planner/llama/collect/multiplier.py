"""Add up products of the activations that go into the weights, while a model reads a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from planner.gguf.covariance import Input
from planner.gguf.products import Products
from planner.llama.collect.activations import Floats, activations_of, not_finite, rows_of
from planner.llama.collect.collector import Collector, is_collected
from planner.llama.graph import Enough, Node
from planner.llama.workers import Workers

__all__ = ["Multiplier", "Together", "products_bytes"]


class Multiplier:
    """An observer that adds up the products of some inputs: `products`, name → one for each of its matrices; `tokens`,
    name → how many rows each of them has, i64[matrices].

    llama.cpp waits meanwhile, so its threads' number of `workers` do the sums, each its own: the result is the same for
    any number of them. With `stops`, the rest of the graph is not run once the last of the inputs was seen.
    """

    def __init__(self, inputs: Sequence[Input], workers: Workers, *, stops: bool = False) -> None:
        self.inputs = {one.name: one for one in inputs}
        self.products = {one.name: [Products(one.width) for _ in range(one.matrices)] for one in inputs}
        self.tokens = {one.name: np.zeros(one.matrices, np.int64) for one in inputs}
        self._workers = workers
        self._last = inputs[-1].name if stops and inputs else None

    def wants(self, node: Node) -> bool:
        """Return whether the node is the first that reads one of the inputs."""
        return is_collected(node, output=True) and node.sources[0].name in self.inputs

    def see(self, node: Node) -> None:
        """Add the products of the node's activations. Raises Enough after the last input."""
        name = node.sources[0].name
        work: list[Callable[[], None]] = []
        for matrix, rows in self._rows(node):
            self.tokens[name][matrix] += len(rows)
            work += self.products[name][matrix].additions(rows)
        self._workers.map(lambda add: add(), work)
        if name == self._last:
            raise Enough

    def check(self) -> None:
        """Raise ModelError where NaN or infinity went into a weight."""
        for name, own in self.products.items():
            if not all(np.isfinite(products.part().diagonal).all() for products in own):
                raise not_finite(name)

    def _rows(self, node: Node) -> list[tuple[int, Floats]]:
        if self.inputs[node.sources[0].name].matrices == 1:
            return [(0, np.ascontiguousarray(rows_of(node.sources[1])))]
        return [(group.matrix, np.ascontiguousarray(group.rows)) for group in activations_of(node)]


class Together:
    """A collector of an importance matrix and a multiplier as one observer."""

    def __init__(self, collector: Collector, multiplier: Multiplier) -> None:
        self._collector, self._multiplier = collector, multiplier

    def wants(self, node: Node) -> bool:
        """Return whether the collector wants the node, as it does what the multiplier wants."""
        return self._collector.wants(node)

    def see(self, node: Node) -> None:
        """Show the node to both."""
        self._collector.see(node)
        if self._multiplier.wants(node):
            self._multiplier.see(node)


def products_bytes(one: Input) -> int:
    """Return the memory that an input's sums of products take."""
    return one.matrices * Products.nbytes(one.width)
