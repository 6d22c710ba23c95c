"""A model: one GGUF file or all parts of a split one, mapped into memory."""

from __future__ import annotations

import functools
import hashlib
import mmap
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import ModelError
from planner.formats.ggml import Format, dequantize_rows, formats
from planner.gguf.contents import other_contents
from planner.gguf.llama_cpp import tensor_order
from planner.gguf.metadata import Metadata
from planner.gguf.reader import GgufFile, Tensor, read_gguf
from planner.work import Reference, reference

__all__ = ["SPLIT_COUNT", "SPLIT_KEYS", "SPLIT_NO", "SPLIT_TENSORS", "Model", "open_model", "split_path"]

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)
_LONGEST_ARCHITECTURE = 1024  # characters; those of llama.cpp have up to 20
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<no>[0-9]{5,})-of-(?P<count>[0-9]{5,})\.gguf", re.DOTALL)


def split_path(stem: Path, index: int, count: int) -> Path:
    """Return the name that llama.cpp gives part `index` (from 0) of `count`: `STEM-00001-of-00003.gguf`."""
    return stem.with_name(f"{stem.name}-{index + 1:05d}-of-{count:05d}.gguf")


class Model(Closing):
    """An open model. Close it, or use it in a `with` statement; arrays returned by `raw_rows` stay valid.

    `tensors` are in file order, part after part; `metadata` is the first part's, which is the one that llama.cpp uses.
    `replaced`: tensor → its type in the file, where ggml does not have it and the nearest stands in.
    """

    def __init__(self, files: tuple[GgufFile, ...]) -> None:
        first = files[0]
        self._files = files
        self.path: Path = first.path
        self.parts: tuple[Path, ...] = tuple(file.path for file in files)
        self.version: int = first.version
        self.alignment: int = first.alignment
        self.metadata: Metadata = first.metadata
        self.tensors: tuple[Tensor, ...] = tuple(tensor for file in files for tensor in file.tensors)
        self.replaced: Mapping[str, str] = {name: kind for file in files for name, kind in file.replaced.items()}
        self.size: int = sum(len(file.data) for file in files)  # bytes of all files
        architecture = first.metadata.text("general.architecture")
        assert architecture is not None  # ensured by open_model
        self.architecture: str = architecture

    def close(self) -> None:
        """Unmap the files, except those that arrays still refer to: these are unmapped with their last array."""
        for file in self._files:
            try:
                file.data.close()
            except BufferError:
                continue

    def __reduce__(self) -> Reference[Model]:
        """Pickled as a reference: weights stay where they are."""
        return self._reference

    @functools.cached_property
    def _reference(self) -> Reference[Model]:
        return reference(open_model, self.path, self.parts)

    def __getitem__(self, name: str) -> Tensor:
        return self.by_name[name]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        """Name → tensor."""
        return {tensor.name: tensor for tensor in self.tensors}

    def parameter(self, name: str) -> int | None:
        """Return an integer of the architecture's own keys: `parameter("block_count")` of a llama model reads
        `llama.block_count`."""
        return self.metadata.integer(f"{self.architecture}.{name}")

    def raw_rows(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return rows `start:stop` as stored: u8[rows, row_bytes], a read-only view of the mapped file. Raises
        IndexError."""
        stop = tensor.rows if stop is None else stop
        if not 0 <= start <= stop <= tensor.rows:
            raise IndexError(f"rows {start}:{stop} of {tensor.name}, which has {tensor.rows}")
        width = tensor.row_bytes
        data = self._files[tensor.part].data
        view = np.frombuffer(data, np.uint8, (stop - start) * width, tensor.offset + start * width)
        return view.reshape(stop - start, width)

    def rows(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as numbers: f32[rows, row_length]."""
        raw = self.raw_rows(tensor, start, stop)
        if tensor.offset % 4:  # a general.alignment of 1 or 2, and C needs whole floats
            raw = raw.copy()
        return dequantize_rows(self.format(tensor), raw, tensor.row_length)

    def chosen_rows(self, tensor: Tensor, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows by their numbers, int64 [k], as numbers: f32[k, row_length]. Raises IndexError."""
        return dequantize_rows(self.format(tensor), self.raw_rows(tensor)[chosen], tensor.row_length)

    def format(self, tensor: Tensor) -> Format:
        """Return the tensor's stored format."""
        return formats()[tensor.format]

    def release(self, tensor: Tensor, start: int, stop: int) -> None:
        """Tell the system that rows `start:stop` may be dropped from memory. They can still be read (from disk)."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page, width = mmap.PAGESIZE, tensor.row_bytes
        # Rounded outwards to whole pages: a neighbour reads lost pages again.
        begin = (tensor.offset + start * width) // page * page
        length = tensor.offset + stop * width - begin
        if length > 0:
            self._files[tensor.part].data.madvise(mmap.MADV_DONTNEED, begin, length)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the metadata and the names, shapes and types of the tensors: not the weights.

        The same for a split model and for its parts merged.
        """
        sha = hashlib.sha256()
        for key in self.metadata:
            if key not in SPLIT_KEYS:
                for piece in self.metadata.raw_pieces(key):
                    sha.update(piece)
        for name in tensor_order(self.by_name):
            tensor = self.by_name[name]
            sha.update(repr((tensor.name, tensor.shape, tensor.format)).encode())
        return sha.hexdigest()


def open_model(path: str | Path, *, nearest: bool = False) -> Model:
    """Open a model: a GGUF file of version 2 or 3, or the first part of a split one, whose other parts are found
    beside it. With `nearest`, types that ggml does not have become its nearest, and data cannot be read (`read_gguf`).

    Raises ModelError for a file that is damaged, incomplete or no model.
    """
    first = read_gguf(Path(path), nearest=nearest)
    files = [first]
    try:
        _check_model(first)
        files += _other_parts(first, nearest=nearest)
        if not any(file.tensors for file in files):
            raise ModelError(
                f"{first.path}: holds no tensors, only a vocabulary or metadata.", "Give the model with its weights."
            )
        return Model(tuple(files))
    except BaseException:
        for file in files:
            file.data.close()
        raise


def _check_model(file: GgufFile) -> None:
    other = other_contents(file.metadata)
    if other is not None:
        raise ModelError(f"{file.path}: {other[0]}, not a model.", other[1])
    index = file.metadata.integer(SPLIT_NO) or 0
    if index:
        match = _SPLIT_NAME.fullmatch(file.path.name)
        begin = split_path(file.path.with_name(match["stem"]), 0, int(match["count"])) if match else "the first part"
        raise ModelError(f"{file.path}: part {index + 1} of a split model.", f"Give the first part: {begin}.")
    architecture = file.metadata.text("general.architecture") or ""
    if not 0 < len(architecture) < _LONGEST_ARCHITECTURE:
        wrong = f"has {len(architecture):,} characters" if architecture else "is missing"
        raise ModelError(
            f"{file.path}: not a model: general.architecture {wrong}.", "Give a model that llama.cpp can load."
        )


def _other_parts(first: GgufFile, *, nearest: bool) -> list[GgufFile]:
    count = first.metadata.integer(SPLIT_COUNT) or 1
    if count == 1:
        return []
    match = _SPLIT_NAME.fullmatch(first.path.name)
    if match is None or int(match["no"]) != 1 or int(match["count"]) != count:
        raise ModelError(
            f"{first.path}: the first of {count} parts by its metadata, but not by its name.",
            f"Name the parts as llama.cpp expects: …-00001-of-{count:05d}.gguf and so on.",
        )
    stem = first.path.with_name(match["stem"])
    if not 1 < count < 65536:
        raise ModelError(f"{first.path}: {SPLIT_COUNT} is {count}.", "The file is damaged: download it again.")
    paths = [split_path(stem, index, count) for index in range(1, count)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise ModelError(
            f"{first.path}: {len(missing)} of its {count} parts are missing: {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}.",
            "Download them into the same directory.",
        )
    files: list[GgufFile] = []
    try:
        for index, part in enumerate(paths, 1):
            files.append(read_gguf(part, index, nearest=nearest))
            _check_part(files[-1], index, count)
        _check_whole(first, files)
    except BaseException:
        for file in files:
            file.data.close()
        raise
    return files


def _check_part(file: GgufFile, index: int, count: int) -> None:
    found = file.metadata.integer(SPLIT_NO), file.metadata.integer(SPLIT_COUNT)
    if found != (index, count):
        raise ModelError(
            f"{file.path}: says that it is part {found[0]} of {found[1]} (counted from 0), not {index} of {count}.",
            "Parts of different models are mixed: download the model again.",
        )


def _check_whole(first: GgufFile, others: list[GgufFile]) -> None:
    seen: dict[str, Path] = {}
    for file in (first, *others):
        for tensor in file.tensors:
            if tensor.name in seen:
                raise ModelError(
                    f"{file.path}: the tensor {tensor.name} is in {seen[tensor.name].name} too.",
                    "Parts of different models are mixed: download the model again.",
                )
            seen[tensor.name] = file.path
    expected = first.metadata.integer(SPLIT_TENSORS)
    if expected != len(seen):
        raise ModelError(
            f"{first.path}: the parts hold {len(seen):,} tensors, and {SPLIT_TENSORS} is {expected}.",
            "Parts of different models are mixed: download the model again.",
        )
