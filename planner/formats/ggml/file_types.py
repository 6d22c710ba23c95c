"""`general.file_type`, llama.cpp's `llama_ftype`: one number for what most of a file's weights are stored in."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

from planner.formats.ggml.formats import formats
from planner.formats.ggml.types import IK_TYPES, TYPES, type_of

__all__ = ["GUESSED", "file_type_of", "file_types"]

GUESSED = 1024
"""LLAMA_FTYPE_GUESSED: the file does not say."""


@functools.cache
def file_types() -> Mapping[int, str]:
    """Return number → name as llama-quantize spells it: `Q4_K_M`, `F16`, `MXFP4_MOE`."""
    from gguf.constants import LlamaFileType  # which plans need not wait for

    known = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    rows = (*TYPES.values(), *IK_TYPES.values())
    newer = {row.file_type: row.name.upper() for row in rows if row.file_type is not None}
    return MappingProxyType({number: name for number, name in {**newer, **known}.items() if number != GUESSED})


def file_type_of(weights: Mapping[str, int]) -> int:
    """Return the number for a file with so many weights in each format, by ggml's names: that of the one with most.

    Formats that are quantized go before all that are not, however few weights they hold.
    """
    table = formats()
    quantized = {name: count for name, count in weights.items() if name in table and table[name].quantized}
    held = quantized or weights
    number = type_of(max(held, key=lambda name: held[name], default="")).file_type
    return GUESSED if number is None else number
