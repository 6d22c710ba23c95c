"""A model's metadata, shortened: long texts cut, arrays as their length and first items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.cells import cell_len

from planner.formats.ggml import GUESSED, file_types
from planner.gguf import Metadata
from planner.report.columns import WIDTH, shown

__all__ = ["Entry", "entries_of", "metadata_text"]

_ITEMS = 4
_CHARACTERS = 400
# A vocabulary has some megabytes; of anything much larger only the length is told, since Python's strings take more
_LARGEST = 1 << 26
_KINDS = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "string", 10: "u64",
          11: "i64", 12: "f64"}  # fmt: skip
_WIDEST_KEY = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One pair. `type` as the GGUF specification calls it (of an array, that of its items); `length` None for what is
    no array. `value`: for an array its first items; None where it is too large to read; numbers that JSON does
    not have are texts. `meaning` explains a number."""

    type: str
    length: int | None
    value: Any
    meaning: str | None = None


def entries_of(metadata: Metadata) -> dict[str, Entry]:
    """Return key → entry, in file order."""
    return {key: _entry(metadata, key) for key in metadata}


def _entry(metadata: Metadata, key: str) -> Entry:
    pair = metadata.pair(key)
    kind, length = _KINDS[pair.kind], pair.count if pair.is_array else None
    if metadata.raw_size(key) > _LARGEST:
        return Entry(kind, length, None)
    value = metadata[key]
    if isinstance(value, list | np.ndarray):
        return Entry(kind, length, [_simple(item, kind) for item in value[:_ITEMS]])
    meaning = _file_type(value) if key == "general.file_type" and isinstance(value, int) else None
    return Entry(kind, length, _simple(value, kind), meaning)


def _simple(value: Any, kind: str) -> bool | int | float | str:
    if isinstance(value, str):
        return value if len(value) <= _CHARACTERS else value[:_CHARACTERS] + "…"
    number: bool | int | float = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, float):
        return number
    if not math.isfinite(number):
        return str(number)
    return float(str(np.float32(number))) if kind == "f32" else number  # 1e-05, not 9.999999747378752e-06


def _file_type(value: int) -> str | None:
    name = file_types().get(value & ~GUESSED)
    return f"guessed {name}" if name and value & GUESSED else name


def metadata_text(entries: dict[str, Entry]) -> list[str]:
    """Format one line a pair: `key = value`."""
    width = min(max((len(key) for key in entries), default=0), _WIDEST_KEY)
    lines = []
    for key, entry in entries.items():
        head = f"  {shown(key, WIDTH - 24):<{width}} = "
        lines.append(head + _value_text(entry, WIDTH - cell_len(head)))
    return lines


def _value_text(entry: Entry, width: int) -> str:
    kind = entry.type + ("s" if entry.type == "string" and entry.length != 1 else "")
    head = "" if entry.length is None else f"{entry.length:,} {kind}"
    if entry.value is None:
        return f"{head or kind}, too large to show"
    if entry.length is None:
        return shown(_item(entry.value) + (f" ({entry.meaning})" if entry.meaning else ""), width)
    # as many items as have room
    for count in range(len(entry.value), 0, -1):
        items = ", ".join(shown(_item(item)) for item in entry.value[:count])
        text = f"{head}: {items}" + (", …" if entry.length > count else "")
        if count == 1 or cell_len(text) <= width:
            return shown(text, width)
    return head


def _item(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
