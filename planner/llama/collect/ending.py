"""End a batch before the output matrix, whose products nobody looks at while activations are collected.

Of a small model they are a quarter of the work. llama.cpp calls what goes into the output matrix `result_norm`,
whatever the architecture; where anything else is wanted after it, batches run to their end.
"""

from __future__ import annotations

from planner.llama.collect.collector import LOGITS
from planner.llama.collect.inputs import look
from planner.llama.engine import Engine
from planner.llama.graph import Enough, Node, Observer

__all__ = ["shortened"]

_LAST = "result_norm"


def shortened(engine: Engine, observer: Observer) -> Observer:
    """Return an observer that sees what `observer` sees and ends each batch after that, if this model's can end.

    A draft head reads what the whole model makes. Runs a few tokens, as `look` does. Raises what the engine raises.
    """
    if engine.runs_head:
        return observer
    finder = _Finder(observer)
    look(engine, finder)
    if len(finder.norms) != 1 or len(finder.wanted) > 1:
        return observer
    if not finder.wanted:
        return _Shortened(observer, None)
    (product,) = finder.wanted
    weight, activations = product.sources[:2]
    if weight.name not in LOGITS or activations.address not in finder.norms:
        return observer
    return _Shortened(observer, product.reading(activations))


class _Shortened:
    """Shows `observer` all that it wants, and ends each batch when the input of the output matrix is there; `output` is
    the multiplication by that, if the observer wants it."""

    def __init__(self, observer: Observer, output: Node | None) -> None:
        self._observer, self._output = observer, output
        self._wanted = False  # by the observer: the node that was asked for last

    def wants(self, node: Node) -> bool:
        """Return whether the observer wants the node, or it is where the batch ends."""
        self._wanted = not self._is_output(node) and self._observer.wants(node)
        return self._wanted or node.name == _LAST

    def see(self, node: Node) -> None:
        """Show the node to the observer if it wants it. Raises Enough at the end."""
        if self._wanted:
            self._observer.see(node)
        if node.name != _LAST:
            return
        if self._output is not None and self._observer.wants(product := self._output.reading(node.result)):
            self._observer.see(product)
        raise Enough

    def _is_output(self, node: Node) -> bool:
        """Return whether the node was shown at the end already: where the graph is divided among devices, the parts
        after that run on."""
        return self._output is not None and node.operation == "MUL_MAT" and node.sources[0].name in LOGITS


class _Finder:
    """An observer that notes the addresses of last norms, and what `observer` wants after them. It needs no data."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.norms: list[int] = []
        self.wanted: list[Node] = []

    def wants(self, node: Node) -> bool:
        if node.name == _LAST:
            self.norms.append(node.result.address)
        elif self.norms and self._observer.wants(node):
            self.wanted.append(node.reading(node.sources[1]))
        return False

    def see(self, node: Node) -> None:
        raise AssertionError("nothing is wanted")
