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
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

from planner.errors import ModelError, PlannerError
from planner.formats.ggml import FOREIGN, Format, format_by_id, formats, nearest_known, unknown_type
from planner.gguf.metadata import ARRAY, SCALARS, STRING, Metadata, Pair
from planner.gguf.tensor import Tensor
from planner.inputs.reading import open_regular
from planner.inputs.strangers import looks_like_a_piece, stranger
from planner.sizes import align

__all__ = ["DEFAULT_ALIGNMENT", "GgufFile", "Tensor", "read_gguf"]

DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MORE_DIMS = 8  # what other software may have raised it to
_MAX_NAME = 64  # GGML_MAX_NAME, the terminating zero included
_MAX_DIM = 2**63 - 1  # ggml keeps dimensions in an int64
# More than any model has, and few enough to be looked at in seconds: 61 blocks of 256 experts stored one by one are
# 47,000 tensors, a vocabulary and its merges a million strings
_MOST_TENSORS, _MOST_PAIRS, _MOST_STRINGS = 1 << 18, 1 << 16, 1 << 22
_HEAD = 4096  # bytes enough to identify other files
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_DAMAGED = "The file is damaged or incomplete: download or convert it again."
_PIECE = "By its name it is a piece of a file that was cut: join all pieces, in order, with cat."
_CONVERTER = "llama.cpp's convert_hf_to_gguf.py makes a GGUF file of a model"
_RAISED = (
    "The file may be sound: for image and video models, stable-diffusion.cpp and ComfyUI-GGUF raise these limits, "
    "which hold here as in llama.cpp. Quantize it with their tools."
)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file with a valid header. `data` is the whole file, mapped read-only. `replaced`: tensor → its type in the
    file, where ggml does not have it and another stands in."""

    path: Path
    data: mmap.mmap
    version: int
    alignment: int
    metadata: Metadata
    tensors: tuple[Tensor, ...]
    replaced: Mapping[str, str]


def read_gguf(path: Path, part: int = 0, error: type[PlannerError] = ModelError, *, nearest: bool = False) -> GgufFile:
    """Map the file and read its header. Raises `error` for anything that llama.cpp would reject, and for tensors
    without elements, which no model has.

    With `nearest`, tensors of ik_llama.cpp's types are read as if they were of ggml's nearest: their names, shapes and
    types may be used, their data not.
    """
    data = _map(path, error)
    try:
        return _Header(path, data, error, nearest=nearest).read(part)
    except BaseException:
        data.close()
        raise


def _map(path: Path, error: type[PlannerError]) -> mmap.mmap:
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        remedy = f"Give a file in it, such as {found[0]}." if found else f"Convert what is in it: {_CONVERTER}."
        raise error(f"{path} is a directory, not a GGUF file.", remedy)
    with open_regular(path, error) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise error(f"{path}: the file is empty.", _DAMAGED)
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as problem:
            raise error(f"{path}: cannot be mapped into memory: {problem.strerror or problem}.") from problem


class _Header:
    """A cursor over the mapped file that never steps beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap, error: type[PlannerError], *, nearest: bool) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = 0
        self.error = error
        self.strings = 0  # in arrays so far
        self.nearest = nearest
        self.replaced: dict[str, str] = {}

    def read(self, part: int) -> GgufFile:
        version, tensors, pairs = self.start()
        metadata = Metadata(self.data, self.pairs(pairs))
        alignment = self.alignment(metadata)
        found = self.tensors(tensors, alignment, part)
        return GgufFile(self.path, self.data, version, alignment, metadata, found, self.replaced)

    def fail(self, problem: str, remedy: str = _DAMAGED) -> NoReturn:
        if remedy is _DAMAGED and looks_like_a_piece(self.path):
            remedy = _PIECE
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
        head = self.data[:_HEAD]
        if not head.startswith(b"GGUF"):
            what = stranger(head, self.size)
            if what is not None:
                self.fail(f"not a GGUF file but {what.what}", what.remedy)
            remedy = _PIECE if looks_like_a_piece(self.path) else f"Convert it: {_CONVERTER}."
            self.fail(f"not a GGUF file: it begins with {head[:4]!r}", remedy)
        self.at = 4
        version = self.u32("the version")
        if version & 0xFFFF == 0:
            self.fail("a big-endian GGUF file", "Convert it in place: gguf-convert-endian FILE little.")
        if version not in (2, 3):
            advice = "Convert the model again with a current converter." if version < 2 else "Update planner."
            self.fail(f"GGUF version {version}, and only versions 2 and 3 can be read", advice)
        tensors, pairs = self.u64("the number of tensors"), self.u64("the number of metadata pairs")
        # name length, dimensions, type and offset; key length, type and the smallest value
        impossible = tensors * 24 + pairs * 13 > self.size - self.at
        if impossible or tensors > _MOST_TENSORS or pairs > _MOST_PAIRS:
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
        self.strings += count
        if count * 8 > size - at or self.strings > _MOST_STRINGS:
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
            found = "an array" if pair.is_array else "a text" if pair.kind == STRING else _shown(str(metadata[key]))
            self.fail(f"{key} must be a power of two in a u32, and is {found}")
        return value

    def tensors(self, count: int, alignment: int, part: int) -> tuple[Tensor, ...]:
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for index in range(count):
            name = self.name(f"the name of tensor {index}")
            if (length := len(name.encode())) >= _MAX_NAME:
                self.fail(
                    f"the name of tensor {index}, {_shown(name)}, has {length} bytes: longer than the {_MAX_NAME - 1} "
                    "bytes that ggml allows",
                    _RAISED,
                )
            if name in infos:
                self.fail(f"the tensor {_shown(name)} occurs twice")
            infos[name] = self.shape(name), self.u32(f"the type of {name}"), self.u64(f"the offset of {name}")
        header_end, start = self.at, align(self.at, alignment)
        data_end, expected, tensors = start if infos else header_end, 0, []
        after = [*[offset for _, _, offset in infos.values()][1:], self.size - start]
        for (name, (shape, type_id, offset)), following in zip(infos.items(), after, strict=False):
            fmt = self.format(name, shape, type_id)
            nbytes = fmt.tensor_bytes(shape)
            stored = max(0, following - offset) if name in self.replaced else nbytes
            self.check_place(name, start, offset, stored, expected, alignment)
            tensors.append(Tensor(name, shape, fmt.name, part, start + offset, nbytes))
            data_end, expected = start + offset + stored, expected + align(stored, alignment)
        self.check_end(data_end, alignment)
        return tuple(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        dims = self.u32(f"the number of dimensions of {name}")
        if dims > _MAX_DIMS:
            remedy = _RAISED if dims <= _MORE_DIMS else _DAMAGED
            self.fail(f"tensor {name} has {dims:,} dimensions, and ggml allows {_MAX_DIMS}", remedy)
        shape = [self.u64(f"the shape of {name}") for _ in range(dims)] or [1]
        if 0 in shape:
            self.fail(f"tensor {name} has no elements: its shape is {shape}")
        if prod(shape) > _MAX_DIM:
            self.fail(f"tensor {name} has an impossible shape, {shape}")
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        return tuple(shape)

    def format(self, name: str, shape: tuple[int, ...], type_id: int) -> Format:
        fmt = format_by_id(type_id) or self.stand_in(name, shape, type_id)
        if not fmt.fits(shape[0]):
            self.fail(f"tensor {name}: its rows of {shape[0]:,} weights are no multiple of {fmt.name}'s {fmt.block}")
        return fmt

    def stand_in(self, name: str, shape: tuple[int, ...], type_id: int) -> Format:
        """Return the nearest type for one that the library does not have, where that is wanted."""
        foreign = FOREIGN.get(type_id)
        near = None if foreign is None else nearest_known(foreign.name, shape[0])
        if foreign is None or near is None or not self.nearest:
            problem, remedy = unknown_type(type_id, shape[0], self.path)
            self.fail(f"tensor {name} has type {problem}", remedy or _DAMAGED)
        self.replaced[name] = foreign.name
        return formats()[near]

    def check_place(self, name: str, start: int, offset: int, nbytes: int, expected: int, alignment: int) -> None:
        if start + offset + nbytes > self.size:
            self.fail(
                f"tensor {name} goes beyond the end of the file: its {nbytes:,} bytes begin at {start + offset:,}, "
                f"and the file ends at {self.size:,}"
            )
        if offset != expected:
            fault = "not aligned" if offset % alignment else "overlapping" if offset < expected else "leaving a gap"
            self.fail(f"tensor {name} lies at offset {offset:,} of the data, {fault}: {expected:,} was expected")

    def check_end(self, end: int, alignment: int) -> None:
        for at in (end, align(end, alignment)):
            if self.data[at : at + 4] == b"GGUF":
                self.fail(
                    f"several GGUF files joined end to end: the second begins at byte {at:,}",
                    "Parts of a split model are joined with `llama-gguf-split --merge FIRST-PART OUT`, not with cat. "
                    "Or give the first part, with the others beside it.",
                )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
