"""A writer of GGUF files that writes whatever it is told, also nonsense."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


@dataclass
class Info:
    """A tensor's header entry; `offset` None: where it belongs."""

    name: str | bytes
    shape: Sequence[int]
    kind: int = 0  # f32
    data: bytes | None = None
    offset: int | None = None

    def payload(self) -> bytes:
        if self.data is not None:
            return self.data
        count = 1
        for dim in self.shape:
            count *= dim
        return bytes(count * {0: 4, 1: 2, 30: 2}[self.kind])


@dataclass
class Spec:
    """A file: `architecture` None leaves the pair out."""

    pairs: list[bytes] = field(default_factory=list)
    tensors: list[Info] = field(default_factory=lambda: [Info("a.weight", (64, 2)), Info("b.weight", (3,))])
    version: int = 3
    architecture: str | None = "llama"
    alignment: int = 32
    n_tensors: int | None = None
    n_pairs: int | None = None
    magic: bytes = b"GGUF"

    def encode(self) -> bytes:
        pairs = list(self.pairs)
        if self.architecture is not None:
            pairs.insert(0, pair("general.architecture", 8, text(self.architecture)))
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(pairs) if self.n_pairs is None else self.n_pairs
        header = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_pairs) + b"".join(pairs)
        data = b""
        for info in self.tensors:
            offset = len(data) if info.offset is None else info.offset
            dims = len(info.shape)
            header += text(info.name) + struct.pack(f"<I{dims}QIQ", dims, *info.shape, info.kind, offset)
            data += info.payload()
            data += bytes(-len(data) % self.alignment)
        return header + bytes(-len(header) % self.alignment) + data


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a `Spec` (its fields as arguments) and return the path."""

    def write(name: str = "model.gguf", **fields: object) -> Path:
        path = tmp_path / name
        path.write_bytes(Spec(**fields).encode())  # type: ignore[arg-type]
        return path

    return write


@pytest.fixture(scope="session")
def tools() -> type:
    """The pieces above, for tests in other modules: pytest imports test modules without their directory."""

    class Tools:
        info = Info
        spec = Spec
        text = staticmethod(text)
        pair = staticmethod(pair)
        examples = EXAMPLES

    return Tools
