"""The imatrix format that llama.cpp wrote before July 2025 (`imatrix.dat`): no magic, no types, only lengths.

entries i32 | (name length i32, name, calls i32, values i32, f32 …) … | chunks i32 | dataset length i32, dataset
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import ImatrixError
from planner.inputs.strangers import is_legacy_imatrix, stranger

__all__ = ["Legacy", "legacy_bytes", "read_legacy"]

_I32 = struct.Struct("<i")
_HEAD = 4096  # bytes enough to identify other files


@dataclass(frozen=True, slots=True)
class Legacy:
    """The contents of such a file: name → (values, calls). Values are means over tokens times `calls`."""

    entries: dict[str, tuple[NDArray[np.float32], int]]
    chunk_count: int
    datasets: tuple[str, ...]


def read_legacy(path: Path) -> Legacy:
    """Read such a file. Raises ImatrixError for any other."""
    return _Reader(path).read()


def legacy_bytes(
    entries: Iterable[tuple[str, NDArray[np.float32]]], *, chunk_count: int, datasets: Iterable[str]
) -> bytes:
    """Return the bytes of such a file, from name → mean squares. Each is written as one call, so that reading it
    divides by 1."""
    parts = []
    for name, values in entries:
        raw = name.encode("utf-8", "surrogateescape")
        parts.append(_I32.pack(len(raw)) + raw + _I32.pack(1) + _I32.pack(values.size))
        parts.append(values.astype("<f4").tobytes())
    dataset = ", ".join(datasets).encode("utf-8", "replace")
    tail = _I32.pack(chunk_count) + _I32.pack(len(dataset)) + dataset
    return _I32.pack(len(parts) // 2) + b"".join(parts) + tail


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ImatrixError(f"{path}: not a regular file.", "Give the file that llama-imatrix wrote.")
        # A map of the file, so that a few gigabytes of something else cost nothing
        size = path.stat().st_size
        self.data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        self.at = 0
        head = self.data[:_HEAD].tobytes()
        other = None if is_legacy_imatrix(head) else stranger(head, size)
        if other is not None:
            remedy = other.remedy if other.veiled else "Give the file that llama-imatrix wrote."
            raise ImatrixError(f"{path}: {other.what}, not an importance matrix.", remedy)

    def take(self, size: int) -> NDArray[np.uint8]:
        if not 0 <= size <= self.data.size - self.at:
            raise ImatrixError(
                f"{self.path}: neither a GGUF nor a legacy imatrix, or cut short (at byte {self.at:,}).",
                "Give the file that llama-imatrix wrote.",
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def i32(self) -> int:
        return int(_I32.unpack(self.take(4).tobytes())[0])

    def text(self) -> str:
        length = self.i32()
        # as a C string, which llama.cpp makes of it
        return self.take(length).tobytes().split(b"\0")[0].decode("utf-8", "replace") if length else ""

    def read(self) -> Legacy:
        entries: dict[str, tuple[NDArray[np.float32], int]] = {}
        count = self.i32()
        if count < 1:
            self.take(-1)
        for _ in range(count):
            name, calls, values = self.text(), self.i32(), self.i32()
            if not name or values < 1 or calls < 0:
                self.take(-1)
            entries[name] = self.take(4 * values).view("<f4") if self.at % 4 == 0 else self.copy(values), calls
        return Legacy(entries, *self.trailer())

    def copy(self, values: int) -> NDArray[np.float32]:
        return np.frombuffer(self.take(4 * values).tobytes(), "<f4")

    def trailer(self) -> tuple[int, tuple[str, ...]]:
        # Optional, and llama.cpp lets it be cut short
        left = self.data.size - self.at
        if left < 4:
            return 0, ()
        chunks = self.i32()
        if left < 8:
            return chunks, ()
        length = self.i32()
        if not 0 < length <= self.data.size - self.at:
            return chunks, ()
        return chunks, (self.take(length).tobytes().split(b"\0")[0].decode("utf-8", "replace"),)
