"""`general.file_type`, llama.cpp's `llama_ftype`: one number for what most of a file's weights are stored in."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from planner.formats.ggml.formats import formats
from planner.formats.ggml.types import IK_TYPES, TYPES

__all__ = ["GUESSED", "file_type_of", "file_types"]

GUESSED = 1024
"""LLAMA_FTYPE_GUESSED: the file does not say."""

# What llama.cpp calls a file of each type when it guesses (llama-model-loader.cpp): the mix of medium size where there
# are several, and MXFP4 only for experts
_OF_A_FORMAT = ("{}", "{}_M", "{}_MOE")


@functools.cache
def file_types() -> Mapping[int, str]:
    """Return number → name as llama-quantize spells it: `Q4_K_M`, `F16`, `MXFP4_MOE`."""
    known = {number: name.removeprefix("MOSTLY_").removeprefix("ALL_") for name, number in _enumeration().items()}
    rows = (*TYPES.values(), *IK_TYPES.values())
    newer = {row.file_type: row.name.upper() for row in rows if row.file_type is not None}
    return MappingProxyType({number: name for number, name in {**newer, **known}.items() if number != GUESSED})


def _enumeration() -> dict[str, int]:
    """Return the members of gguf.LlamaFileType by name, without loading the rest of that package: every plan would wait
    for it (50 ms)."""
    package = importlib.util.find_spec("gguf")
    assert package is not None, "planner depends on it"
    folder = Path(next(iter(package.submodule_search_locations or ())))
    spec = importlib.util.spec_from_file_location("gguf_constants", folder / "constants.py")
    assert spec is not None
    assert spec.loader is not None
    constants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(constants)
    return {entry.name: entry.value for entry in constants.LlamaFileType}


def file_type_of(weights: Mapping[str, int]) -> int:
    """Return the number for a file with so many weights in each format, by ggml's names: that of the one with most.

    Formats that are quantized go before all that are not, however few weights they hold.
    """
    table = formats()
    quantized = {name: count for name, count in weights.items() if name in table and table[name].quantized}
    held = quantized or weights
    most = max(held, key=lambda name: held[name], default="").upper()
    numbers = {name: number for number, name in file_types().items()}
    return next((numbers[name] for shape in _OF_A_FORMAT if (name := shape.format(most)) in numbers), GUESSED)
