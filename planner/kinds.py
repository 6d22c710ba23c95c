"""What a file is, told by its first bytes."""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass

__all__ = [
    "BASELINE",
    "BASELINE_MAGIC",
    "BPW_STATE",
    "BPW_STATE_MAGIC",
    "GGUF",
    "HEAD",
    "JSON",
    "LEGACY_IMATRIX",
    "STATE",
    "TEXT",
    "UNKNOWN",
    "Kind",
    "encoding_of",
    "kind_of",
]

HEAD = 4096
"""Bytes that tell one kind of file from another."""
BASELINE_MAGIC = b"_logits_"
BPW_STATE_MAGIC = (0x4250572D5632).to_bytes(8, "little")  # "BPW-V2"


@dataclass(frozen=True, slots=True)
class Kind:
    """`what` a file is, as a sentence says it. `in_place`: read where it lies, here and there, and not from the
    beginning to the end. `remedy`: what to do with one that planner has no use for."""

    what: str
    in_place: bool = False
    remedy: str = ""


GGUF = Kind("a GGUF file", in_place=True)
STATE = Kind("a state file", in_place=True)
BASELINE = Kind("a file of log-probabilities", in_place=True)
LEGACY_IMATRIX = Kind("an imatrix", in_place=True)
BPW_STATE = Kind("a state of --target-bpw")
JSON = Kind("JSON")
TEXT = Kind("text")
UNKNOWN = Kind("nothing that planner knows")

_CONVERT = "Convert the original model with llama.cpp's convert_hf_to_gguf.py."
_UNPACK = "Unpack it first."
_EMPTY = Kind("empty", remedy="Make it again: whatever wrote it did not get far.")
_SAFETENSORS = Kind("a safetensors file", remedy=_CONVERT)
_MAGICS = (
    (b"GGUF", GGUF),
    (b"SQLite format 3\0", STATE),
    (BASELINE_MAGIC, BASELINE),
    (BPW_STATE_MAGIC, BPW_STATE),
    # What else people have
    (b"PK\x03\x04", Kind("a zip archive, perhaps of PyTorch", remedy=_CONVERT)),
    (b"lmgg", Kind("a GGML file from before GGUF", remedy=_CONVERT)),
    (b"tjgg", Kind("a GGML file from before GGUF", remedy=_CONVERT)),
    (b"version https://git-lfs.", Kind("a Git LFS pointer, not the file itself", remedy="Fetch it: `git lfs pull`.")),
    (b"\x1f\x8b", Kind("compressed with gzip", remedy=_UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("compressed with zstd", remedy=_UNPACK)),
    (b"\xfd7zXZ\0", Kind("compressed with xz", remedy=_UNPACK)),
    (b"<!DOCTYPE html", Kind("a web page", remedy="Download the file itself; its site may want a login.")),
)
# The longer ones first: UTF-32's begins with UTF-16's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def encoding_of(data: bytes) -> tuple[str, int]:
    """How text is encoded by the mark at its start, and how many bytes that takes: UTF-8 without one."""
    return next(((encoding, len(mark)) for mark, encoding in _MARKS if data.startswith(mark)), ("utf-8", 0))


def kind_of(head: bytes, size: int) -> Kind:
    """What a file of `size` bytes is that begins with `head` (HEAD bytes, or all of it)."""
    if not head:
        return _EMPTY
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return _SAFETENSORS
    if _may_be_legacy_imatrix(head):
        return LEGACY_IMATRIX
    encoding, mark = encoding_of(head)
    text = head[mark:].decode(encoding, "replace")
    if "\0" in text:
        return UNKNOWN
    return JSON if text.lstrip().startswith("{") else TEXT


def _may_be_legacy_imatrix(head: bytes) -> bool:
    """Whether a file without a magic begins as one: how many entries, and a first one with a name that is text."""
    if len(head) < 8:
        return False
    entries, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + min(length, 64)] if length > 0 else b""
    return 0 < entries < 1 << 24 and 0 < length < 1024 and len(name) > 0 and all(32 < byte < 127 for byte in name)
