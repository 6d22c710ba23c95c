"""GGUF files taken apart and put together wrong, with lengths that agree or not."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from random import Random

from planner.formats.ggml import format_by_id
from tests.fuzz.values import FLOATS, INTEGERS, float_bytes, nasty, near, packed

__all__ = ["mutated_gguf"]

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_KEYS = (
    b"general.alignment", b"general.type", b"general.architecture", b"split.no", b"split.count", b"split.tensors.count",
    b"general.file_type", b"general.quantization_version", b"llama.block_count", b"llama.attention.head_count",
    b"llama.attention.head_count_kv", b"llama.embedding_length", b"llama.expert_count", b"llama.expert_used_count",
    b"llama.attention.key_length", b"imatrix.chunk_count", b"imatrix.chunk_size", b"imatrix.datasets",
    b"llama.attention.layer_norm_rms_epsilon", b"tokenizer.ggml.tokens", b"general.name",
)  # fmt: skip
_TYPES = (0, 1, 2, 3, 6, 7, 8, 9, 10, 12, 14, 15, 16, 20, 23, 24, 25, 26, 27, 28, 29, 30, 31, 34, 35, 36, 39, 99)


@dataclass
class _Info:
    name: bytes
    shape: list[int]
    kind: int
    data: bytes
    offset: int | None = None  # None: where it belongs


@dataclass
class _File:
    pairs: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # key, type, payload
    tensors: list[_Info] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    counts: tuple[int, int] | None = None


def mutated_gguf(rng: Random, data: bytes) -> bytes:
    """A pair or a tensor changed. ValueError for what is no GGUF."""
    try:
        file = _parsed(data)
    except (struct.error, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(str(error)) from error
    match rng.randrange(10):
        case 0 | 1 | 2:
            _change_pair(rng, file)
        case 3 | 4:
            _change_tensor(rng, file)
        case 5 | 6 | 7:
            _change_values(rng, file)
        case 8:
            items = rng.choice((file.pairs, file.tensors))
            _change_list(rng, items)
        case _:
            file.counts = (near(rng, len(file.tensors)) % 2**64, len(file.pairs))
            if rng.getrandbits(1):
                file.counts = (len(file.tensors), near(rng, len(file.pairs)) % 2**64)
    return _encoded(file)


def _parsed(data: bytes) -> _File:
    magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or tensors > 1000 or pairs > 1000:
        raise ValueError("no GGUF")
    file, at = _File(version=version), 24
    for _ in range(pairs):
        key, at = _string(data, at)
        kind = struct.unpack_from("<I", data, at)[0]
        end = _end(data, at + 4, kind)
        file.pairs.append((key, kind, data[at + 4 : end]))
        if key == b"general.alignment":
            file.alignment = max(1, int.from_bytes(data[at + 4 : end], "little") % 4096)
        at = end
    offsets = []
    for _ in range(tensors):
        name, at = _string(data, at)
        dims = struct.unpack_from("<I", data, at)[0]
        if dims > 8:
            raise ValueError("no dimensions")
        *shape, kind, offset = struct.unpack_from(f"<{dims}QIQ", data, at + 4)
        at += 16 + 8 * dims
        file.tensors.append(_Info(name, shape, kind, b""))
        offsets.append(offset)
    start = -(-at // file.alignment) * file.alignment
    for info, offset, end in zip(file.tensors, offsets, [*offsets[1:], len(data)], strict=True):
        info.data = data[start + offset : start + end]
    return file


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    length = struct.unpack_from("<Q", data, at)[0]
    if length > len(data):
        raise ValueError("no string")
    return data[at + 8 : at + 8 + length], at + 8 + length


def _end(data: bytes, at: int, kind: int) -> int:
    if kind == _STRING:
        return _string(data, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if count > len(data):
        raise ValueError("no array")
    if kind in _SIZES:
        return at + count * _SIZES[kind]
    for _ in range(count):
        at = _end(data, at, kind)
    return at


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _encoded(file: _File) -> bytes:
    tensors, pairs = file.counts or (len(file.tensors), len(file.pairs))
    header = struct.pack("<4sIQQ", b"GGUF", file.version, tensors, pairs)
    header += b"".join(_text(key) + struct.pack("<I", kind) + payload for key, kind, payload in file.pairs)
    body = bytearray()
    for info in file.tensors:
        offset = len(body) if info.offset is None else info.offset
        shape = [size % 2**64 for size in info.shape]
        header += _text(info.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, info.kind, offset)
        body += info.data
        body += bytes(-len(body) % file.alignment)
    return header + bytes(-len(header) % file.alignment) + bytes(body)


def _change_list(rng: Random, items: list[object]) -> None:
    if not items:
        raise ValueError("nothing there")
    at = rng.randrange(len(items))
    match rng.randrange(4):
        case 0:
            del items[at]
        case 1:
            items.insert(rng.randint(0, len(items)), items[at])
        case 2:
            rng.shuffle(items)
        case _:
            items.clear()


def _change_pair(rng: Random, file: _File) -> None:
    at = rng.randrange(len(file.pairs)) if file.pairs else 0
    key, kind, payload = file.pairs[at] if file.pairs else (b"x", 4, b"\0\0\0\0")
    match rng.randrange(5):
        case 0:
            key = nasty(rng) if rng.getrandbits(1) else rng.choice(_KEYS)
        case 1:  # new: any type for any key
            key, at = rng.choice(_KEYS), len(file.pairs)
            kind, payload = _value(rng, rng.choice([*_SIZES, _STRING, _ARRAY]))
        case 2:
            kind, payload = _value(rng, rng.choice([*_SIZES, _STRING, _ARRAY]))
        case 3 if kind in _SIZES:
            payload = packed(rng, _SIZES[kind], int.from_bytes(payload, "little"))
        case _:
            kind, payload = _value(rng, kind if kind != _ARRAY or rng.getrandbits(1) else _STRING)
    file.pairs[at : at + 1] = [(key, kind, payload)]
    if key == b"general.alignment" and kind == 4 and rng.getrandbits(1):  # as if it were meant
        file.alignment = max(1, int.from_bytes(payload[:4], "little") % 4096)


def _value(rng: Random, kind: int) -> tuple[int, bytes]:
    if kind == _STRING:
        return kind, _text(nasty(rng))
    if kind == _ARRAY:
        inner, count = rng.choice([*_SIZES, _STRING]), rng.choice((0, 1, 2, 30))
        values = b"".join(_value(rng, inner)[1] for _ in range(count))
        claimed = count if rng.random() < 0.8 else near(rng, count) % 2**64
        return kind, struct.pack("<IQ", inner, claimed) + values
    return kind, packed(rng, _SIZES[kind])


def _change_tensor(rng: Random, file: _File) -> None:
    if not file.tensors:
        raise ValueError("no tensors")
    info, other = rng.choice(file.tensors), rng.choice(file.tensors)
    match rng.randrange(7):
        case 0:
            info.name = rng.choice((nasty(rng), other.name, info.name + nasty(rng), info.name[:-1]))
        case 1 if info.shape:
            at = rng.randrange(len(info.shape))
            info.shape[at] = near(rng, info.shape[at])
        case 2:
            info.shape = rng.choice((
                info.shape[::-1], [*info.shape, 1], info.shape[:-1], [*info.shape, *info.shape], other.shape[:],
                [1] * 5, [2**32, 2**32], [0, *info.shape],
            ))  # fmt: skip
        case 3:  # another type, with as many bytes as that needs
            info.kind = rng.choice(_TYPES)
            fmt = format_by_id(info.kind)
            if fmt is not None and info.shape and fmt.fits(info.shape[0]):
                size = fmt.row_bytes(info.shape[0])
                for dim in info.shape[1:]:
                    size *= dim
                if size < 200_000:
                    info.data = (info.data * (size // max(1, len(info.data)) + 1))[:size]
        case 4:
            info.kind = rng.choice((*INTEGERS, *_TYPES)) % 2**32
        case 5:
            info.offset = near(rng, 32 * rng.randrange(64)) % 2**64
        case _:
            info.data = rng.choice((info.data[:-1], info.data + b"\0" * 32, b"", info.data * 2))


def _change_values(rng: Random, file: _File) -> None:
    """Floats of a tensor at the edge: one, a row, or all of them."""
    if not file.tensors:
        raise ValueError("no tensors")
    info = rng.choice(file.tensors)
    size = {0: 4, 28: 8}.get(info.kind, 2)
    value = float_bytes(rng.choice(FLOATS), size)
    if rng.random() < 0.2:
        value = rng.randbytes(size)
    count = len(info.data) // size
    if not count:
        raise ValueError("no values")
    at = rng.randrange(count)
    length = min(rng.choice((1, 1, 2, info.shape[0] if info.shape else 1, count)), count - at)
    if rng.random() < 0.2:
        at, length = 0, count
    info.data = info.data[: at * size] + value * length + info.data[(at + length) * size :]
