"""Operations and tensors of llama.cpp's graph, as an observer of the engine sees them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.llama.library import GgmlTensor, ggml

__all__ = ["Enough", "Node", "Observer", "Tensor", "origin"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the engine's memory, alive as long as the engine (weights) or the operation (activations).

    `shape` and `strides` (bytes) are in ggml's order. Names of weights are those of the file. `copied` marks what the
    scheduler copies to another device for every operation.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    address: int
    nbytes: int
    copied: bool

    def read(self) -> NDArray[np.uint8]:
        """Return its bytes, u8[nbytes]: a view where they are in main memory, else a copy."""
        struct = GgmlTensor.from_address(self.address)
        if ggml().is_host(struct.buffer) and struct.data:
            return np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(struct.data))
        data = np.empty(self.nbytes, np.uint8)
        ggml().get(self.address, data.ctypes.data, 0, self.nbytes)
        return data

    def write(self, data: NDArray[np.uint8], offset: int = 0) -> None:
        """Replace bytes from `offset` on by `data`, u8, C-contiguous. Raises ValueError if they do not fit."""
        if data.dtype != np.uint8 or not data.flags.c_contiguous or not 0 <= offset <= self.nbytes - data.nbytes:
            raise ValueError(
                f"{self.name} has {self.nbytes} bytes: {data.nbytes} of {data.dtype} at {offset} do not fit"
            )
        ggml().set(self.address, data.ctypes.data, offset, data.nbytes)


class Node:
    """One operation of the graph: each batch has hundreds, so its parts are read on demand."""

    def __init__(self, address: int) -> None:
        self._address = address
        self._struct = GgmlTensor.from_address(address)

    @functools.cached_property
    def operation(self) -> str:
        """Name of the operation in ggml, such as `MUL_MAT`."""
        name: bytes = ggml().op_name(self._struct.op)
        return name.decode("ascii")

    @functools.cached_property
    def sources(self) -> tuple[Tensor, ...]:
        """Inputs of the operation."""
        return tuple(_tensor(source) for source in self._struct.src if source)

    @functools.cached_property
    def result(self) -> Tensor:
        """Output of the operation."""
        return _tensor(self._address)

    @functools.cached_property
    def name(self) -> str:
        """What the model's builder calls the result, such as `result_norm`."""
        name: bytes = self._struct.name
        return name.decode("utf-8", "replace")

    def reading(self, activations: Tensor) -> Node:
        """Return a multiplication as it would be of these activations. It is in no graph, and has no result."""
        struct = GgmlTensor.from_buffer_copy(self._struct)
        struct.src[1] = activations.address
        node = Node(ctypes.addressof(struct))
        node._struct = struct  # whose memory it is
        return node


class Enough(Exception):
    """An observer has seen all that it wants of a batch: the rest of the graph is not run, its results are void."""


class Observer(Protocol):
    """An observer that is shown every operation before it runs, and those that it wants once more when their inputs are
    ready."""

    def wants(self, node: Node) -> bool:
        """Return whether `see` is to be called with this node. Data of activations is not there yet."""

    def see(self, node: Node) -> None:
        """Look at the node's inputs and its result; they are gone afterwards. May raise Enough."""


def origin(tensor: Tensor, through: Collection[bytes] = (b"RESHAPE",)) -> int:
    """Return the address of the tensor that this one is, perhaps reshaped: the same values in the same order. Other
    operations that keep them may be looked `through` too."""
    struct = GgmlTensor.from_address(tensor.address)
    while struct.src[0] and ggml().op_name(struct.op) in through:
        struct = GgmlTensor.from_address(struct.src[0])
    return ctypes.addressof(struct)


def _tensor(address: int) -> Tensor:
    struct = GgmlTensor.from_address(address)
    name = struct.name.decode("utf-8", "replace")
    copied = "#" in name  # the scheduler calls them CUDA0#blk.0.attn_k.weight#0
    shape, strides = tuple(struct.ne), tuple(struct.nb)
    nbytes = int(ggml().nbytes(address))
    return Tensor(name.split("#")[1] if copied else name, struct.type, shape, strides, address, nbytes, copied)
