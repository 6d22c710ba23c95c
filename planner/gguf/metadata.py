"""The key-value pairs of a GGUF header: located when the file is opened, decoded on demand.

A vocabulary of 262,144 words costs one walk over its lengths when the file is opened, and Python strings only when
somebody reads it. The bytes of each pair stay where they are in the mapped file, so that a writer copies them bit for
bit, whatever they hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ARRAY", "SCALARS", "STRING", "Metadata", "Pair", "Value", "encode_pair"]

Value: TypeAlias = "bool | int | float | str | list[str] | NDArray[np.generic]"

# Value types as the GGUF specification numbers them: a number's dtype by its id, and the two that are no numbers.
SCALARS: dict[int, np.dtype[np.generic]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
STRING = 8
ARRAY = 9
_IDS = {dtype: kind for kind, dtype in SCALARS.items()}
_U64 = struct.Struct("<Q")
_PIECE = 1 << 20  # bytes read together
_LONGEST = 1 << 24  # bytes: a chat template has some ten thousand, a list for all blocks a thousand


@dataclass(frozen=True, slots=True)
class Pair:
    """Position of one key-value pair in the file.

    `begin:end` are the bytes of the whole pair, key included; `value` is where the value's payload begins (after type,
    element type and count); `kind` is the type of the value, or of an array's elements.
    """

    key: str
    kind: int
    is_array: bool
    count: int
    begin: int
    value: int
    end: int


class Metadata(Mapping[str, Value]):
    """Key → value, in file order. Numbers and booleans become Python's; arrays of numbers become numpy arrays
    (read-only), arrays of strings lists. Bytes that are not UTF-8 are shown as U+FFFD (`raw` has the originals)."""

    def __init__(self, data: mmap, pairs: Mapping[str, Pair]) -> None:
        self._data = data
        self._pairs = pairs
        self._decoded: dict[str, Value] = {}

    def __getitem__(self, key: str) -> Value:
        if key not in self._decoded:
            self._decoded[key] = self._decode(self._pairs[key])
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, key: object) -> bool:
        return key in self._pairs  # Mapping's own would decode the value

    def raw(self, key: str) -> bytes:
        """Return the bytes of the whole pair as the file has them: key, type and value."""
        pair = self._pairs[key]
        return self._data[pair.begin : pair.end]

    def raw_pieces(self, key: str) -> Iterator[bytes]:
        """Yield `raw(key)` in pieces of bounded size."""
        pair = self._pairs[key]
        for begin in range(pair.begin, pair.end, _PIECE):
            yield self._data[begin : min(begin + _PIECE, pair.end)]

    def raw_size(self, key: str) -> int:
        """Return `len(raw(key))` without reading it."""
        pair = self._pairs[key]
        return pair.end - pair.begin

    def with_number(self, key: str, value: int) -> bytes:
        """Return the bytes of a whole pair with another number, of the same type; the pair is of one integer."""
        pair = self._pairs[key]
        return self._data[pair.begin : pair.value] + np.array(value, SCALARS[pair.kind]).tobytes()

    def first_of(self, key: str, count: int) -> bytes:
        """Return the bytes of a whole pair with the first numbers of its array."""
        pair = self._pairs[key]
        end = pair.value + count * SCALARS[pair.kind].itemsize
        return self._data[pair.begin : pair.value - _U64.size] + _U64.pack(count) + self._data[pair.value : end]

    def one_of(self, key: str, index: int) -> bytes:
        """Return the bytes of a whole pair with one of the numbers of its array alone."""
        pair = self._pairs[key]
        size = SCALARS[pair.kind].itemsize
        begin = pair.value + index * size
        return self._data[pair.begin : pair.value - _U64.size] + _U64.pack(1) + self._data[begin : begin + size]

    def pair(self, key: str) -> Pair:
        """Return the position and type of a pair."""
        return self._pairs[key]

    def text(self, key: str) -> str | None:
        """Return the value if it is a string of plausible length."""
        value = self.brief(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """Return the value if it is an integer (not a boolean)."""
        value = self.brief(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def strings(self, key: str) -> list[bytes]:
        """Return the strings of an array, or a single string as a list of one, as stored; empty for other types."""
        pair = self._pairs[key]
        if pair.kind != STRING:
            return []
        block = self._data[pair.value : pair.end]
        at, words = 0, []
        for _ in range(pair.count):
            (length,) = _U64.unpack_from(block, at)
            at += 8
            words.append(block[at : at + length])
            at += length
        return words

    def brief(self, key: str) -> Value | None:
        """Return the value if it is short enough to be meant for reading."""
        return self[key] if key in self and self.raw_size(key) <= _LONGEST else None

    def _decode(self, pair: Pair) -> Value:
        if pair.kind == STRING:
            words = [word.decode("utf-8", "replace") for word in self.strings(pair.key)]
            return words if pair.is_array else words[0]
        dtype = SCALARS[pair.kind]
        # Booleans are bytes in the file, and any byte but 0 is true: a view as "?" would trust them to be 0 or 1.
        stored = np.dtype("u1") if dtype.kind == "b" else dtype
        array = np.frombuffer(self._data[pair.value : pair.end], stored)
        if dtype.kind == "b":
            array = array != 0
        array.flags.writeable = False
        if pair.is_array:
            return array
        scalar: bool | int | float = array[0].item()
        return scalar


def encode_pair(key: str, value: bool | int | float | str | list[str] | np.generic) -> bytes:
    """Return a whole pair as bytes. A Python `int` is written as u32 where it fits (as llama.cpp writes its own
    counts), else as i64; a `float` as f32; a numpy scalar as exactly what it is."""
    head = _text(key)
    if isinstance(value, str):
        return head + struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list):
        body = b"".join(map(_text, value))
        return head + struct.pack("<IIQ", ARRAY, STRING, len(value)) + body
    if isinstance(value, np.generic):  # before float: an f64 is one
        scalar = value
    elif isinstance(value, bool):
        scalar = np.bool_(value)
    elif isinstance(value, int):
        scalar = np.uint32(value) if 0 <= value < 2**32 else np.int64(value)
    else:
        scalar = np.float32(value)
    dtype = scalar.dtype.newbyteorder("<")
    return head + struct.pack("<I", _IDS[dtype]) + bytes(scalar.astype(dtype).tobytes())


def _text(text: str) -> bytes:
    # "surrogateescape" gives back the bytes of a file name that is not UTF-8
    encoded = text.encode("utf-8", "surrogateescape")
    return _U64.pack(len(encoded)) + encoded
