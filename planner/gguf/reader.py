"""The header of a GGUF file, checked before anything in it is believed.

    magic "GGUF" | version u32 | tensors u64 | pairs u64 | pairs … | tensor infos … | padding | tensor data

Every count and length is compared with the bytes that are left before it is used, so time and memory are
linear in the size of the file, whatever the header claims. The `gguf` package has a reader too; it decodes every
string of a vocabulary when it opens a file (seconds for 262,144 words) and trusts counts and offsets, which a
damaged file turns into an IndexError or gigabytes of memory. Only llama.cpp's own rules decide what is valid here.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

from planner.errors import ModelError, PlannerError
from planner.ggml import format_by_id
from planner.gguf.metadata import ARRAY, SCALARS, STRING, Metadata, Pair
from planner.inputs import open_regular

__all__ = ["DEFAULT_ALIGNMENT", "GgufFile", "Tensor", "padded", "read_gguf"]

DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_NAME = 64  # GGML_MAX_NAME, the terminating zero included
_MAX_DIM = 2**63 - 1  # ggml keeps dimensions in an int64
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_DAMAGED = "The file is damaged or incomplete: download or convert it again."


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model.

    `shape` is in ggml order, row length first, without trailing ones; `offset` counts from the beginning of the
    file; `part` is the index of the file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    part: int
    offset: int
    nbytes: int

    @property
    def row_length(self) -> int:
        """Weights in a row."""
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Rows over all matrices."""
        return prod(self.shape[1:])

    @property
    def rows_per_matrix(self) -> int:
        """Rows of one matrix."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def matrices(self) -> int:
        """Matrices stacked in the tensor: its experts, or 1."""
        return prod(self.shape[2:])

    def slices(self, weights: int) -> Iterator[tuple[int, int, int]]:
        """(matrix, first row, last row + 1) over all rows, at most so many `weights` (but a row at least) at a time;
        none crosses matrices. Rows are numbered over all matrices."""
        step = max(1, weights // self.row_length)
        for matrix in range(self.matrices):
            begin = matrix * self.rows_per_matrix
            end = begin + self.rows_per_matrix
            for start in range(begin, end, step):
                yield matrix, start, min(start + step, end)

    @property
    def elements(self) -> int:
        """Weights in the tensor."""
        return prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as the file stores it."""
        return self.nbytes // self.rows


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file that holds what its header says. `data` is the whole file, mapped read-only."""

    path: Path
    data: mmap.mmap
    version: int
    alignment: int
    metadata: Metadata
    tensors: tuple[Tensor, ...]


def padded(size: int, alignment: int) -> int:
    """Return `size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def read_gguf(path: Path, part: int = 0, error: type[PlannerError] = ModelError) -> GgufFile:
    """Map the file and read its header. Raises `error` for anything that llama.cpp would refuse, and for tensors
    without elements, which no model has."""
    data = _map(path, error)
    try:
        return _Header(path, data, error).read(part)
    except BaseException:
        data.close()
        raise


def _map(path: Path, error: type[PlannerError]) -> mmap.mmap:
    with open_regular(path, error) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise error(f"{path}: the file is empty.", _DAMAGED)
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as problem:
            raise error(f"{path}: cannot be mapped into memory: {problem.strerror or problem}.") from problem


class _Header:
    """A cursor over the mapped file that never steps beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap, error: type[PlannerError]) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = 0
        self.error = error

    def read(self, part: int) -> GgufFile:
        version, tensors, pairs = self.start()
        metadata = Metadata(self.data, self.pairs(pairs))
        alignment = self.alignment(metadata)
        return GgufFile(self.path, self.data, version, alignment, metadata, self.tensors(tensors, alignment, part))

    def fail(self, problem: str, remedy: str = _DAMAGED) -> NoReturn:
        raise self.error(f"{self.path}: {problem}.", remedy)

    def skip(self, size: int, what: str) -> int:
        """Step over `size` bytes; return where they begin."""
        if size > self.size - self.at:
            self.fail(f"{what} needs {size:,} bytes at offset {self.at:,}, and the file ends at {self.size:,}")
        begin = self.at
        self.at += size
        return begin

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8, what))[0])

    def name(self, what: str) -> str:
        length = self.u64(f"the length of {what}")
        begin = self.skip(length, what)
        # A key or a name is short: do not copy a gigabyte to say that it is not one.
        if not 0 < length < 65536:
            self.fail(f"{what} has {length:,} bytes, which no name has")
        try:
            text = self.data[begin : self.at].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not text")
        if not text.isprintable():
            self.fail(f"{what} holds unprintable characters: {_shown(text)}")
        return text

    def start(self) -> tuple[int, int, int]:
        magic = self.data[:4]
        if magic != b"GGUF":
            if self.data[:24] == b"version https://git-lfs.":
                self.fail("a Git LFS pointer, not the model itself", "Fetch the file with `git lfs pull`.")
            self.fail(f"not a GGUF file: it begins with {magic!r}", "Convert the model with convert_hf_to_gguf.py.")
        self.at = 4
        version = self.u32("the version")
        if version & 0xFFFF == 0:
            self.fail("a big-endian GGUF file", "Convert it with gguf-py's gguf_convert_endian.py.")
        if version not in (2, 3):
            advice = "Convert the model again with a current converter." if version < 2 else "Update planner."
            self.fail(f"GGUF version {version}, and only versions 2 and 3 can be read", advice)
        tensors, pairs = self.u64("the number of tensors"), self.u64("the number of metadata pairs")
        # name length, dimensions, type and offset; key length, type and the smallest value
        if tensors * 24 + pairs * 13 > self.size - self.at:
            self.fail(f"the header claims {tensors:,} tensors and {pairs:,} metadata pairs in {self.size:,} bytes")
        return version, tensors, pairs

    def pairs(self, count: int) -> dict[str, Pair]:
        pairs: dict[str, Pair] = {}
        for index in range(count):
            begin = self.at
            key = self.name(f"the key of metadata pair {index}")
            if key in pairs:
                self.fail(f"the metadata key {_shown(key)} occurs twice")
            pairs[key] = self.value(key, begin)
        return pairs

    def value(self, key: str, begin: int) -> Pair:
        what = f"the value of {_shown(key)}"
        kind, count = self.u32(what), 1
        is_array = kind == ARRAY
        if is_array:
            kind, count = self.u32(what), self.u64(what)
        value = self.at
        if kind == STRING:
            self.skip_strings(count, what)
        elif kind in SCALARS:
            self.skip(count * SCALARS[kind].itemsize, what)
        else:
            nested = " (an array of arrays, which llama.cpp cannot read either)" if kind == ARRAY else ""
            self.fail(f"{what} has the unknown type {kind}{nested}")
        return Pair(key, kind, is_array, count, begin, value, self.at)

    def skip_strings(self, count: int, what: str) -> None:
        # The one loop of the header that runs half a million times: locals only.
        data, at, size, unpack = self.data, self.at, self.size, _U64.unpack_from
        if count * 8 > size - at:
            self.fail(f"{what} claims {count:,} strings in the {size - at:,} bytes that are left")
        for index in range(count):
            if at + 8 > size:
                self.fail(f"{what} ends at string {index:,} of {count:,}")
            at += 8 + unpack(data, at)[0]
            if at > size:
                self.fail(f"{what}: string {index:,} of {count:,} goes beyond the end of the file")
        self.at = at

    def alignment(self, metadata: Metadata) -> int:
        key = "general.alignment"
        if key not in metadata:
            return DEFAULT_ALIGNMENT
        pair = metadata.pair(key)
        value = metadata.integer(key) or 0
        if pair.is_array or pair.kind != 4 or value & (value - 1) or not value:
            self.fail(f"{key} must be a power of two in a u32, and is {_shown(str(metadata[key]))}")
        return value

    def tensors(self, count: int, alignment: int, part: int) -> tuple[Tensor, ...]:
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for index in range(count):
            name = self.name(f"the name of tensor {index}")
            if len(name.encode()) >= _MAX_NAME:
                self.fail(f"the name of tensor {index} is longer than the {_MAX_NAME - 1} bytes that ggml allows")
            if name in infos:
                self.fail(f"the tensor {_shown(name)} occurs twice")
            infos[name] = self.shape(name), self.u32(f"the type of {name}"), self.u64(f"the offset of {name}")
        start, expected, tensors = padded(self.at, alignment), 0, []
        for name, (shape, type_id, offset) in infos.items():
            tensor = self.tensor(name, shape, type_id, part, start, offset, expected, alignment)
            expected += padded(tensor.nbytes, alignment)
            tensors.append(tensor)
        return tuple(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        dims = self.u32(f"the number of dimensions of {name}")
        if dims > _MAX_DIMS:
            self.fail(f"tensor {name} has {dims:,} dimensions, and ggml allows {_MAX_DIMS}")
        shape = [self.u64(f"the shape of {name}") for _ in range(dims)] or [1]
        if 0 in shape:
            self.fail(f"tensor {name} has no elements: its shape is {shape}")
        if prod(shape) > _MAX_DIM:
            self.fail(f"tensor {name} has an impossible shape, {shape}")
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        return tuple(shape)

    def tensor(
        self, name: str, shape: tuple[int, ...], type_id: int, part: int,
        start: int, offset: int, expected: int, alignment: int,
    ) -> Tensor:  # fmt: skip
        fmt = format_by_id(type_id)
        if fmt is None:
            self.fail(
                f"tensor {name} has type {type_id}, which this ggml library does not know",
                "Point PLANNER_GGML at the libggml-base of a newer llama.cpp, or convert the model again.",
            )
        if not fmt.fits(shape[0]):
            self.fail(f"tensor {name}: its rows of {shape[0]:,} weights are no multiple of {fmt.name}'s {fmt.block}")
        nbytes = fmt.row_bytes(shape[0]) * prod(shape[1:])
        if start + offset + nbytes > self.size:
            self.fail(
                f"tensor {name} goes beyond the end of the file: its {nbytes:,} bytes begin at {start + offset:,}, "
                f"and the file ends at {self.size:,}"
            )
        if offset != expected:
            fault = "not aligned" if offset % alignment else "overlapping" if offset < expected else "leaving a gap"
            self.fail(f"tensor {name} lies at offset {offset:,} of the data, {fault}: {expected:,} was expected")
        return Tensor(name, shape, fmt.name, part, start + offset, nbytes)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
