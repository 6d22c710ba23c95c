"""GGUF files that are no models: what their header says, and where each of their tensors lies."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.errors import PlannerError
from planner.gguf.reader import DEFAULT_ALIGNMENT
from planner.sizes import align

__all__ = ["F16", "F32", "Item", "header_of", "places"]

F32, F16 = 0, 1  # enum ggml_type
_BYTES = {F32: 4, F16: 2}
_MAX_NAME = 64  # GGML_MAX_NAME, the terminating zero included


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor of the file: two dimensions, row length first, and its type by ggml's number."""

    name: str
    shape: tuple[int, int]
    type: int = F32

    @property
    def nbytes(self) -> int:
        """Bytes of its values, without padding."""
        return _BYTES[self.type] * self.shape[0] * self.shape[1]

    @property
    def padded(self) -> int:
        """Bytes that it takes in the file."""
        return align(self.nbytes, DEFAULT_ALIGNMENT)


def header_of(pairs: Sequence[bytes], items: Sequence[Item], error: type[PlannerError]) -> bytes:
    """Return the bytes before the first tensor; `pairs` are of `encode_pair`. Raises `error` for names that no GGUF can
    have."""
    out = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(items), len(pairs)))
    out += b"".join(pairs)
    offset = 0
    for item in items:
        text = item.name.encode()
        if not item.name.isprintable() or len(text) >= _MAX_NAME:
            raise error(
                f"No GGUF can have an entry named {item.name!r}: names are printable, and shorter than {_MAX_NAME} "
                "bytes.",
                "Leave the file out that it is from.",
            )
        dimensions = item.shape[: 2 if item.shape[1] > 1 else 1]  # ggml_n_dims
        out += struct.pack("<Q", len(text)) + text
        out += struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, item.type, offset)
        offset += item.padded
    return bytes(out.ljust(align(len(out), DEFAULT_ALIGNMENT), b"\0"))


def places(header: bytes, items: Sequence[Item]) -> Iterator[int]:
    """Yield where each item begins in the file, and last where the file ends."""
    at = len(header)
    yield at
    for item in items:
        at += item.padded
        yield at
