"""What a file is, told by its first bytes; of JSON, by all of it. Nothing else in planner decides that."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from planner.inputs.strangers import is_legacy_imatrix, stranger

__all__ = [
    "ANSWERS_MAGIC",
    "BASELINE",
    "BASELINE_MAGIC",
    "BPW_STATE",
    "BPW_STATE_MAGIC",
    "GGUF",
    "HEAD",
    "JSON",
    "KLD_TABLE",
    "LEGACY_IMATRIX",
    "RECIPE",
    "STATE",
    "TEXT",
    "TEXTS",
    "UNKNOWN",
    "Kind",
    "encoding_of",
    "kind_of",
    "kind_of_whole",
]

HEAD = 4096
"""Bytes that tell one kind of file from another."""
BASELINE_MAGIC = b"_logits_"
ANSWERS_MAGIC = b"_answer_"  # of log-probabilities, too: those of answers in conversations
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
RECIPE = Kind("a recipe")
KLD_TABLE = Kind("a table of KL divergences")
TEXT = Kind("text")
UNKNOWN = Kind("nothing that planner knows")
TEXTS = (JSON, RECIPE, KLD_TABLE, TEXT, UNKNOWN)
"""Kinds that may be read as text."""

_EMPTY = Kind("empty", remedy="Make it again: whatever wrote it did not get far.")
_MAGICS = (
    (b"GGUF", GGUF), (b"SQLite format 3\0", STATE), (BASELINE_MAGIC, BASELINE), (ANSWERS_MAGIC, BASELINE),
    (BPW_STATE_MAGIC, BPW_STATE),
)  # fmt: skip
_OF_RECIPE = '"format_version"'  # which no dictionary of another program has
# As a kld_results.csv of the GGUF-Tool-Suite begins, also when a spreadsheet has named the separator
_OF_KLD_TABLE = re.compile(r"""("?sep=."?\r?\n)?"?QTYPE"?[,;\t]""")
# The longer ones first: UTF-32's begins with UTF-16's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def encoding_of(data: bytes) -> tuple[str, int]:
    """Return the encoding that a byte order mark at the start of a text stands for, and the mark's bytes: UTF-8 without
    one."""
    return next(((encoding, len(mark)) for mark, encoding in _MARKS if data.startswith(mark)), ("utf-8", 0))


def kind_of(head: bytes, size: int) -> Kind:
    """Return what a file of `size` bytes is, from its beginning `head` (HEAD bytes, or all of it)."""
    if not head:
        return _EMPTY
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if is_legacy_imatrix(head):
        return LEGACY_IMATRIX
    encoding, mark = encoding_of(head)
    text = head[mark:].decode(encoding, "replace")
    if "\0" not in text and text.lstrip().startswith("{"):
        return JSON
    if found := stranger(head, size):
        return Kind(found.what, remedy=found.remedy)
    if "\0" in text:
        return UNKNOWN
    return KLD_TABLE if _OF_KLD_TABLE.match(text) else TEXT


def kind_of_whole(kind: Kind, data: bytes) -> Kind:
    """Return the kind of a file whose head is of `kind`, by all of its bytes: what tells a recipe from other JSON may
    stand anywhere in it."""
    encoding, _ = encoding_of(data)
    return RECIPE if kind == JSON and _OF_RECIPE.encode(encoding) in data else kind
