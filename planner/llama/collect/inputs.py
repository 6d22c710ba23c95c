"""Find out which weights read the same activations, from the graph of a few tokens.

In llama.cpp's graph, what goes into queries, keys and values is one tensor, and so is what goes into gate and up; a
mixture's router and its experts read that tensor too, the experts in another shape. So weights share an input where
their activations are the same tensor of one graph, reshaped or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.gguf import Model, why_left_alone
from planner.gguf.covariance import Input
from planner.llama.collect.collector import is_collected
from planner.llama.engine import Engine
from planner.llama.graph import Node, Observer, origin

__all__ = ["find_inputs", "look"]

_TOKENS = 16  # the fewest that count for an importance matrix


@dataclass(frozen=True, slots=True)
class _Reading:
    """A weight as it reads activations: the tensor that they are of, channels, matrices that read rows of their own (1:
    all read the same), and whether they are chosen among."""

    weight: str
    origin: int
    width: int
    matrices: int
    routed: bool


class _Readings:
    """An observer that notes what each weight reads. It needs no data."""

    def __init__(self, *, output: bool) -> None:
        self.found: dict[str, _Reading] = {}
        self._output = output

    def wants(self, node: Node) -> bool:
        if is_collected(node, output=self._output):
            weight, activations = node.sources[:2]
            routed = node.operation == "MUL_MAT_ID"
            matrices = weight.shape[2] * weight.shape[3]
            if routed and activations.shape[1] < node.sources[2].shape[0]:
                matrices = 1  # one row for all experts that a token has chosen
            read = _Reading(weight.name, origin(activations), activations.shape[0], matrices, routed)
            self.found.setdefault(weight.name, read)
        return False

    def see(self, node: Node) -> None:
        raise AssertionError("nothing is wanted")


def find_inputs(engine: Engine, model: Model, *, output: bool = False) -> list[Input]:
    """Return the inputs of the model's weights in the order in which they are computed: of those weights that llama.cpp
    quantizes and collects an importance matrix for (`output`: also of what makes the logits).

    Runs a few tokens, as `look` does. Raises what the engine raises.
    """
    readings = _Readings(output=output)
    look(engine, readings)
    return _group(list(readings.found.values()), model)


def look(engine: Engine, observer: Observer) -> None:
    """Show an observer the model's graph of a few tokens, without a draft head's. The engine has to have been given an
    observer, which is put back.

    Raises what the engine raises.
    """
    before = engine.observer, engine.heads
    engine.observer, engine.heads = observer, None
    try:
        count = min(_TOKENS, engine.context)
        tokens = np.full(count, max(engine.bos, 0), np.int32)
        engine.forget()
        engine.decode(tokens, np.arange(count, dtype=np.int32), np.zeros(count, np.int32), np.ones(count, np.bool_))
        engine.forget()
    finally:
        engine.observer, engine.heads = before


def _group(readings: list[_Reading], model: Model) -> list[Input]:
    # what a plain matrix reads, all tokens have, also where only one expert is chosen and has a row of its own
    common = {read.origin for read in readings if not read.routed and read.matrices == 1}
    groups: dict[tuple[int, int], list[_Reading]] = {}
    for read in readings:
        tensor = model.by_name.get(read.weight)
        if tensor is None or why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format):
            continue
        matrices = 1 if read.routed and read.origin in common else read.matrices
        groups.setdefault((read.origin, matrices), []).append(read)
    return [
        Input(own[0].weight, tuple(read.weight for read in own), own[0].width, matrices)
        for (_, matrices), own in groups.items()
    ]
