"""Lay out the file to be written: the place of every byte is known before anything is written.

    header | padding | tensor, padded | tensor, padded | …

    header = magic, version, counts | pairs of the source, in order | what llama-quantize and we add | tensor infos

The order of pairs and tensors is llama-quantize's, so that our file differs from its own only by our own pairs.
In two points it does not follow. llama-quantize pads to 32 bytes even where it copies a `general.alignment` of
another size, and nothing can load that file; here the alignment is the one that the file states. And it cuts strings
of the metadata at a zero byte; here they are copied whole.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from planner.errors import OutputError, UsageError
from planner.formats.ggml import Format
from planner.gguf.drafts import pairs_without
from planner.gguf.imatrix import Imatrix
from planner.gguf.llama_cpp import tensor_order
from planner.gguf.metadata import encode_pair
from planner.gguf.model import SPLIT_COUNT, SPLIT_KEYS, SPLIT_NO, SPLIT_TENSORS, Model
from planner.gguf.reader import DEFAULT_ALIGNMENT, Tensor
from planner.sizes import align

__all__ = ["Extra", "Placed", "Shard", "arrange", "header_bytes", "imatrix_pairs", "predicted_size", "zeros"]

Extra: TypeAlias = "bool | int | float | str | list[str] | np.generic"
"""A value of a pair to be added: see `encode_pair`."""

_START = struct.Struct("<4sIQQ")
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_OVERRIDE = 127  # bytes of a string that fit llama_model_kv_override
_PIECE = 1 << 20  # bytes written together
_MOST_SHARDS = 65535  # split.count is a u16


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and the format that it is written in."""

    tensor: Tensor
    format: Format

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without padding."""
        return self.format.tensor_bytes(self.tensor.shape)

    @property
    def info_bytes(self) -> int:
        """Bytes of its entry in the header: name, dimensions, type and offset."""
        return 8 + len(self.tensor.name.encode()) + 4 + 8 * len(self.tensor.shape) + 4 + 8


class _Pairs:
    """The metadata of the output: the source's pairs, copied when written, or `changed`; and the added ones."""

    def __init__(
        self, model: Model, file_type: int, added: Sequence[tuple[str, Extra]], changed: Mapping[str, bytes]
    ) -> None:
        pairs: dict[str, Extra] = {
            "general.quantization_version": np.uint32(_QUANTIZATION_VERSION),
            "general.file_type": np.uint32(file_type),
        }
        for key, value in added:
            if key in SPLIT_KEYS or key == "general.alignment":
                raise ValueError(f"{key} follows from the layout and cannot be set")
            pairs.pop(key, None)  # set again, it goes to the end, as in gguf_set_val_*
            pairs[key] = value
        self.metadata, self.changed = model.metadata, changed
        self.kept = [key for key in model.metadata if key not in pairs and key not in SPLIT_KEYS]
        self.added = [encode_pair(key, value) for key, value in pairs.items()]

    @property
    def count(self) -> int:
        return len(self.kept) + len(self.added)

    @property
    def nbytes(self) -> int:
        kept = (len(self.changed[key]) if key in self.changed else self.metadata.raw_size(key) for key in self.kept)
        return sum(kept) + sum(map(len, self.added))

    def __iter__(self) -> Iterator[bytes]:
        for key in self.kept:
            yield from (self.changed[key],) if key in self.changed else self.metadata.raw_pieces(key)
        yield from self.added


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the output. `pairs` is None in all but the first; `split` are its own `split.*` pairs."""

    pairs: _Pairs | None
    split: tuple[bytes, ...]
    tensors: tuple[Placed, ...]
    alignment: int

    @property
    def header_bytes(self) -> int:
        """Bytes before the data of the first tensor."""
        pairs = (self.pairs.nbytes if self.pairs else 0) + sum(map(len, self.split))
        return align(_START.size + pairs + sum(placed.info_bytes for placed in self.tensors), self.alignment)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.header_bytes + sum(align(placed.nbytes, self.alignment) for placed in self.tensors)

    def header(self) -> Iterator[bytes]:
        """Yield the header in pieces of bounded size, padding included."""
        count = (self.pairs.count if self.pairs else 0) + len(self.split)
        yield _START.pack(b"GGUF", 3, len(self.tensors), count)
        yield from self.pairs or ()
        yield from self.split
        offset, written = 0, _START.size + (self.pairs.nbytes if self.pairs else 0) + sum(map(len, self.split))
        for placed in self.tensors:
            name, shape = placed.tensor.name.encode(), placed.tensor.shape
            yield struct.pack("<Q", len(name)) + name
            yield struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, placed.format.id, offset)
            offset += align(placed.nbytes, self.alignment)
            written += placed.info_bytes
        yield from zeros(self.header_bytes - written)


def zeros(count: int) -> Iterator[bytes]:
    """Yield this many zero bytes in pieces of bounded size: an alignment may be of gigabytes."""
    for begin in range(0, count, _PIECE):
        yield bytes(min(_PIECE, count - begin))


def arrange(
    model: Model,
    formats: Mapping[str, Format],
    added: Sequence[tuple[str, Extra]],
    file_type: int,
    *,
    keep_split: bool = False,
    max_shard_size: int | None = None,
    dropped: Collection[str] = (),
) -> tuple[Shard, ...]:
    """Return the files to write. `formats` names the format of each tensor that changes; draft heads that are
    `dropped` are left out.

    `max_shard_size` bounds each file as a whole, header included; a model that fits stays one file, without `split.*`.
    Raises OutputError if a single tensor exceeds it, UsageError if it is given for a split that is kept, ModelError for
    heads that cannot be left out.
    """
    pairs = _Pairs(model, file_type, added, pairs_without(model, dropped))

    def place(tensor: Tensor) -> Placed:
        return Placed(tensor, formats.get(tensor.name) or model.format(tensor))

    if keep_split:
        if max_shard_size is not None:
            raise UsageError("The split of the source cannot be kept and changed.", "Choose one of the two options.")
        groups: list[list[Placed]] = [[] for _ in model.parts]
        for tensor in model.tensors:  # already by (part, offset)
            if tensor.name not in dropped:
                groups[tensor.part].append(place(tensor))
    else:
        groups = [[place(model.by_name[name]) for name in tensor_order(model.by_name) if name not in dropped]]
        if max_shard_size is not None:
            groups = _divide(groups[0], pairs, model.alignment, max_shard_size)
    count, total = len(groups), sum(map(len, groups))
    return tuple(
        Shard(
            None if index else pairs,
            _split_pairs(index, count, total, keep_split) if count > 1 else (),
            tuple(group),
            DEFAULT_ALIGNMENT if index else model.alignment,  # only the first shard has general.alignment
        )
        for index, group in enumerate(groups)
    )


def _divide(tensors: list[Placed], pairs: _Pairs, alignment: int, limit: int) -> list[list[Placed]]:
    if Shard(pairs, (), tuple(tensors), alignment).nbytes <= limit:
        return [tensors]
    split = sum(map(len, _split_pairs(0, 1, 1, keep_split=False)))
    groups: list[list[Placed]] = [[]]
    header, data = _START.size + split + pairs.nbytes, 0
    for placed in tensors:
        size = align(placed.nbytes, alignment)
        if groups[-1] and align(header + placed.info_bytes, alignment) + data + size > limit:
            groups.append([])
            header, data, alignment = _START.size + split, 0, DEFAULT_ALIGNMENT
            size = align(placed.nbytes, alignment)
        header, data = header + placed.info_bytes, data + size
        if (needed := align(header, alignment) + data) > limit:
            raise OutputError(
                f"A shard with {placed.tensor.name} alone takes {needed:,} bytes, more than the {limit:,} allowed.",
                "Allow larger shards.",
            )
        groups[-1].append(placed)
    if len(groups) > _MOST_SHARDS:
        raise OutputError(f"{len(groups):,} shards, and {_MOST_SHARDS:,} are possible.", "Allow larger shards.")
    return groups


def _split_pairs(index: int, count: int, tensors: int, keep_split: bool) -> tuple[bytes, ...]:
    number = encode_pair(SPLIT_NO, np.uint16(index))
    of = encode_pair(SPLIT_COUNT, np.uint16(count))
    total = encode_pair(SPLIT_TENSORS, np.int32(tensors))
    # llama-quantize and gguf-split put them in different orders
    return (number, of, total) if keep_split else (number, total, of)


def imatrix_pairs(imatrix: Imatrix | None) -> list[tuple[str, Extra]]:
    """Return the pairs in which llama-quantize records the imatrix: paths and names cut after 127 bytes."""
    if imatrix is None:
        return []
    pairs: list[tuple[str, Extra]] = [("quantize.imatrix.file", _cut(imatrix.given))]
    if imatrix.datasets:
        pairs.append(("quantize.imatrix.dataset", _cut(imatrix.datasets[0])))
    pairs.append(("quantize.imatrix.entries_count", np.uint32(len(imatrix.entries))))
    if 0 < imatrix.chunk_count < 2**31:
        pairs.append(("quantize.imatrix.chunks_count", np.uint32(imatrix.chunk_count)))
    return pairs


def _cut(text: str) -> str:
    # bytes of a path that are no UTF-8, or a letter cut in two, come back out of encode_pair as they are
    return text.encode("utf-8", "surrogateescape")[:_OVERRIDE].decode("utf-8", "surrogateescape")


def header_bytes(
    model: Model,
    imatrix: Imatrix | None = None,
    extra: Sequence[tuple[str, Extra]] = (),
    file_type: int = 0,
    *,
    dropped: Collection[str] = (),
) -> int:
    """Return the bytes before the first tensor of an output in one file. They do not depend on the formats:

    file size = header_bytes + Σ over tensors of align(bytes in its format, model.alignment)
    """
    return arrange(model, {}, [*imatrix_pairs(imatrix), *extra], file_type, dropped=dropped)[0].header_bytes


def predicted_size(
    model: Model,
    formats: Mapping[str, Format],
    imatrix: Imatrix | None = None,
    extra: Sequence[tuple[str, Extra]] = (),
    *,
    file_type: int = 0,
    keep_split: bool = False,
    max_shard_size: int | None = None,
) -> int:
    """Return the total bytes of the files that `quantize_model` writes for these formats; tensors not in `formats` stay
    as they are."""
    added = [*imatrix_pairs(imatrix), *extra]
    shards = arrange(model, formats, added, file_type, keep_split=keep_split, max_shard_size=max_shard_size)
    return sum(shard.nbytes for shard in shards)
