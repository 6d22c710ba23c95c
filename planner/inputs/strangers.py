"""Files that people take for a GGUF or an imatrix, told by their first bytes: what they are, and what to do."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from planner.errors import option

__all__ = ["Stranger", "is_legacy_imatrix", "looks_like_a_piece", "stranger"]


@dataclass(frozen=True, slots=True)
class Stranger:
    """`what` a file is, and what to do for whoever wants a model. `veiled`: that holds for whatever was wanted, as
    the right file may be behind this one."""

    what: str
    remedy: str
    veiled: bool = False


_CONVERT = "Convert the original model with llama.cpp's convert_hf_to_gguf.py."
_CONVERT_GGML = "Convert it with llama.cpp's convert_llama_ggml_to_gguf.py, or its original with convert_hf_to_gguf.py."
_DOWNLOAD = "Download the file itself: `hf download REPOSITORY FILE`, after logging in where its site asks for that."
_OTHER = "Give the model itself."
_MAGICS = {
    b"version https://git-lfs.": Stranger(
        "a Git LFS pointer, not the file itself", "Fetch the file with `git lfs pull`.", veiled=True
    ),
    b"PK\x03\x04": Stranger("a zip archive, perhaps of PyTorch", _CONVERT),
    b"\x80\x02": Stranger("a Python pickle, perhaps of PyTorch", _CONVERT),
    b"\x80\x04": Stranger("a Python pickle, perhaps of PyTorch", _CONVERT),
    b"\x89HDF\r\n": Stranger("an HDF5 file", _CONVERT),
    b"\x93NUMPY": Stranger("a NumPy array", _CONVERT),
    b"lmgg": Stranger("a GGML file from before GGUF", _CONVERT_GGML),
    b"fmgg": Stranger("a GGML file from before GGUF (GGMF)", _CONVERT_GGML),
    b"tjgg": Stranger("a GGML file from before GGUF (GGJT)", _CONVERT_GGML),
    b"algg": Stranger("a LoRA adapter from before GGUF", "Convert its original with convert_lora_to_gguf.py."),
    b"nsgg": Stranger("a session that llama.cpp saved", "Give the model that it was of."),
    b"qsgg": Stranger("a sequence that llama.cpp saved", "Give the model that it was of."),
    b"MZqFpD": Stranger("a llamafile, a program with a model in it", "Take the model out: unzip FILE '*.gguf'."),
    b"MZ": Stranger("a program for Windows", _OTHER),
    b"\x7fELF": Stranger("a program", _OTHER),
    b"_logits_": Stranger("a file of log-probabilities", "Give it to `planner evaluate`."),
}
_PACKED = {
    b"\x1f\x8b": "compressed with gzip", b"BZh": "compressed with bzip2", b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a rar archive",
}  # fmt: skip
_MAGICS |= {magic: Stranger(what, "Unpack it first.", veiled=True) for magic, what in _PACKED.items()}
# What servers say in place of a file: pages, and the short texts of huggingface.co
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml|<head)", re.IGNORECASE)
_REFUSAL = re.compile(rb'\s*(Entry not found|Repository not found|Access to |Invalid |Unauthorized|\{"error")')
_PIECE = re.compile(r".*\.gguf([-._](split|part)[-_.]?\w+|\.[a-z]{2}|\.\d{2,3})", re.IGNORECASE)


def stranger(head: bytes, size: int) -> Stranger | None:
    """Return what a file of `size` bytes is, from its beginning `head` (a few kilobytes); None where that is not
    known."""
    if head.startswith(b"SQLite format 3\0"):
        what = "a database, such as a state file of `planner measure`"
        return Stranger(what, f"Give it with {option('state')}.")
    for magic, found in _MAGICS.items():
        if head.startswith(magic):
            return found
    if head[257:262] == b"ustar":
        return Stranger("a tar archive", "Unpack it first.", veiled=True)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return Stranger("a safetensors file", _CONVERT)
    if _PAGE.match(head):
        return Stranger("a web page, not the file itself", _DOWNLOAD, veiled=True)
    if _REFUSAL.match(head):
        return Stranger(f"what a server says in place of a file ({_line(head)})", _DOWNLOAD, veiled=True)
    if not head.strip(b"\0"):
        what = "nothing but zeros at its beginning, as a download leaves it that was not finished"
        return Stranger(what, "Download it again.", veiled=True)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" and b"\0" not in head:
        return Stranger("JSON, such as a recipe or a model's config.json", _OTHER)
    if is_legacy_imatrix(head):
        return Stranger(
            "an importance matrix of the older kind", f"Give the model, and this file with {option('imatrix')}."
        )
    return None


def looks_like_a_piece(path: Path) -> bool:
    """Return whether a name is that of one piece of a file that was cut, to be joined again before use:
    `x.gguf-split-a`."""
    return _PIECE.fullmatch(path.name) is not None


def _line(head: bytes) -> str:
    text = head[:60].decode("utf-8", "replace").strip()
    return repr(text.splitlines()[0] if text else text)


def is_legacy_imatrix(head: bytes) -> bool:
    """Return whether a file without a magic number begins as one: with a count of entries, and a first one named by
    text."""
    if len(head) < 8:
        return False
    entries, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + min(length, 64)] if length > 0 else b""
    return 0 < entries < 1 << 24 and 0 < length < 1024 and len(name) > 0 and all(32 < byte < 127 for byte in name)
