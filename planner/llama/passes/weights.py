"""Weights of a loaded model, which can be written over in the engine's memory and put back.

To put a tensor back its rows are copied from the file once more, and compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError, UsageError, option
from planner.formats.ggml import formats
from planner.gguf import Model
from planner.gguf import Tensor as FileTensor
from planner.gguf.conversion import checked_rows
from planner.llama.engine import Engine
from planner.llama.graph import Node, Tensor

__all__ = ["WEIGHTS_AT_A_TIME", "Weights", "open_weights"]

WEIGHTS_AT_A_TIME = 1 << 20
"""That are changed together, in each thread: 4 MiB of float32, a few times over."""


class Weights:
    """The weights of one engine. Made by `open_weights`.

    `weights` are those that the engine holds as the file does, by name. What it holds in another way is `out_of_reach`,
    and what is in neither it does not use.
    """

    def __init__(
        self, engine: Engine, model: Model, weights: Mapping[str, Sequence[Tensor]], out_of_reach: Collection[str]
    ) -> None:
        self.engine, self.model, self.weights, self.out_of_reach = engine, model, weights, out_of_reach
        self._changed: set[str] = set()

    @property
    def changed(self) -> frozenset[str]:
        """Names of tensors that were written to and not put back."""
        return frozenset(self._changed)

    def write(self, name: str, start: int, rows: NDArray[np.float32]) -> None:
        """Write rows, f32[r, n], over those of a tensor from `start` on, in the type that it is stored in. Raises
        ModelError for values that this type cannot hold."""
        self._changed.add(name)
        stored = formats()[self.model[name].format]
        raw = checked_rows(name, stored, rows, None, start, "Start from a BF16 or F32 model.")
        for weight in self.weights[name]:
            weight.write(raw.reshape(-1), start * raw.shape[1])

    def restore(self, names: Sequence[str] | None = None) -> None:
        """Put back everything that was changed, or only `names`. Raises InferenceError if memory does not then hold
        what the file holds, bit for bit."""
        for name in sorted(self._changed) if names is None else names:
            tensor = self.model[name]
            for _, start, stop in tensor.slices(WEIGHTS_AT_A_TIME):
                raw = np.ascontiguousarray(self.model.raw_rows(tensor, start, stop))
                for weight in self.weights[name]:
                    weight.write(raw.reshape(-1), start * raw.shape[1])
                self.model.release(tensor, start, stop)
            self.check(name)
            self._changed.discard(name)

    def check(self, name: str) -> None:
        """Raise InferenceError unless the engine holds what the file holds."""
        tensor = self.model[name]
        for weight in self.weights[name]:
            held = weight.read()
            for _, start, stop in tensor.slices(WEIGHTS_AT_A_TIME):
                raw = self.model.raw_rows(tensor, start, stop)
                here = held[start * raw.shape[1] : stop * raw.shape[1]]
                if not np.array_equal(here, raw.reshape(-1)):
                    raise InferenceError(
                        f"{name} in llama.cpp's memory is not what {self.model.path} holds.",
                        f"Weights cannot be changed on this backend: try {option('gpu_layers', 0)}.",
                    )
                self.model.release(tensor, start, stop)


@contextlib.contextmanager
def open_weights(path: Path, model: Model, *, context: int, threads: int | None, gpu_layers: int) -> Iterator[Weights]:
    """Load a model so that its weights can be changed.

    Quantized tensors cannot be changed. Raises UsageError for a model that has no others, InferenceError if llama.cpp
    keeps weights out of reach.
    """
    found: dict[str, dict[int, Tensor]] = {}

    class Finder:
        def wants(self, node: Node) -> bool:
            for tensor in node.sources:
                if tensor.name in model.by_name:
                    held = found.setdefault(tensor.name, {})
                    if not tensor.copied:
                        held[tensor.address] = tensor
            return False

        def see(self, node: Node) -> None:
            raise AssertionError("nothing was wanted")

    with Engine(
        path, context=context, threads=threads, gpu_layers=gpu_layers, observer=Finder(), writable=True
    ) as engine:
        for _ in engine.windows(np.zeros((1, context), np.int32), first=context - 1):
            pass
        engine.observer = None
        weights = {name: list(each.values()) for name, each in found.items() if _as_stored(model[name], each.values())}
        quantized = [name for name in found if formats()[model[name].format].quantized]
        if quantized and not any(model[name].rows > 1 for name in weights):
            raise UsageError(
                f"{quantized[0]} is {model[quantized[0]].format}, quantized already.",
                "What rounding does is seen on the original: give the F16, BF16 or F32 model.",
            )
        result = Weights(engine, model, weights, found.keys() - weights.keys())
        for name in weights:
            result.check(name)
        yield result


def _as_stored(tensor: FileTensor, held: Collection[Tensor]) -> bool:
    """Return whether the engine's tensors are the file's, in an unquantized type."""
    stored = formats()[tensor.format]
    as_stored = all(weight.nbytes == tensor.nbytes and weight.type == stored.id for weight in held)
    return bool(held) and as_stored and not stored.quantized
