"""One block of a model as a model of its own, whose words are places of a stream.

llama.cpp runs a model from its beginning alone. So a block is written to a file with a table in place of the embedding,
a row for every token of a text: what the stream is there in front of the block. The text is then read by its places.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format, formats
from planner.gguf import Model
from planner.gguf.metadata import encode_pair
from planner.gguf.reader import DEFAULT_ALIGNMENT, Tensor
from planner.llama.rounding.seen import TABLE
from planner.names.gguf import block_prefix
from planner.sizes import align

__all__ = ["ALONE", "of_block", "write_block"]

ALONE = frozenset({"gemma2", "llama", "olmo2", "phi3", "qwen2", "qwen3", "qwen3moe"})
"""Architectures whose blocks llama.cpp runs by themselves as in the whole model: each was tried. With others, whose
blocks are not all alike, it may end the process."""

Floats = NDArray[np.float32]

_OUTPUT = "output.weight"
_VOCABULARY = (TABLE, _OUTPUT)
_START = struct.Struct("<4sIQQ")
_PIECE = 1 << 24  # bytes copied together


def of_block(model: Model, block: int) -> dict[str, str]:
    """Return the tensors of a block by their names in a file of it alone: those of the first."""
    prefix = f"blk.{block}"
    return {
        f"blk.0{tensor.name.removeprefix(prefix)}": tensor.name
        for tensor in model.tensors
        if block_prefix(tensor.name) == prefix
    }


def write_block(model: Model, block: int, places: int, path: Path) -> None:
    """Write a block of a model, with a table of zeros for so many places. Raises OSError."""
    named = {own: model[name] for own, name in of_block(model, block).items()}
    named |= {
        tensor.name: tensor
        for tensor in model.tensors
        if block_prefix(tensor.name) is None and tensor.name not in _VOCABULARY
    }
    width = model[TABLE].row_length
    tables = {TABLE: "f32"} | ({_OUTPUT: "f16"} if _OUTPUT in model.by_name else {})
    infos: list[tuple[str, tuple[int, ...], Format]]
    infos = [(name, (width, places), formats()[fmt]) for name, fmt in tables.items()]
    infos += [(name, tensor.shape, model.format(tensor)) for name, tensor in named.items()]
    pairs = list(_pairs(model, block, places))
    header = bytearray(_START.pack(b"GGUF", 3, len(infos), len(pairs)) + b"".join(pairs))
    offset = 0
    places_of = []
    for name, shape, fmt in infos:
        text = name.encode()
        header += struct.pack("<Q", len(text)) + text
        header += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, fmt.id, offset)
        places_of.append(offset)
        offset += align(fmt.tensor_bytes(shape), DEFAULT_ALIGNMENT)
    data = align(len(header), DEFAULT_ALIGNMENT)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(data + offset)  # zeros, but for what follows
        for (name, _, _), place in zip(infos, places_of, strict=True):
            if name in named:
                file.seek(data + place)
                for piece in _raw(model, named[name]):
                    file.write(piece.data)


def _raw(model: Model, tensor: Tensor) -> Iterator[NDArray[np.uint8]]:
    for _, start, stop in tensor.slices(_PIECE):
        yield np.ascontiguousarray(model.raw_rows(tensor, start, stop))
        model.release(tensor, start, stop)


def _pairs(model: Model, block: int, places: int) -> Iterator[bytes]:
    """Yield what the block's file says of itself: the architecture's own pairs, those of every block cut to its own."""
    metadata, own = model.metadata, f"{model.architecture}."
    blocks = model.parameter("block_count")
    yield metadata.raw("general.architecture")
    for key in metadata:
        if not key.startswith(own) or key == f"{own}vocab_size":
            continue
        pair = metadata.pair(key)
        if key == f"{own}block_count":
            yield metadata.with_number(key, 1)
        elif pair.is_array and pair.count == blocks:
            yield metadata.one_of(key, block)
        else:
            yield metadata.raw(key)
    yield encode_pair(f"{own}vocab_size", np.uint32(places))
    yield encode_pair("tokenizer.ggml.model", "none")
