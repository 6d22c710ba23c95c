"""Configurations of EvoPress for GGUF, as gguf_stitcher.py of the gptq-gguf-toolkit reads them.

Lines `TENSOR: BITS (BITS-TYPE.pth)`, split at the first colon; the file in brackets is one of the layer database, whose
name gguf_splitter.py makes of the type and of its own table of bits. Every tensor of the model has a line.
"""

from __future__ import annotations

import re
from pathlib import Path

from planner.dialects.dialect import (
    Dialect,
    ExportContext,
    Exported,
    ImportContext,
    Imported,
    beginning,
    last_of_each,
    refuse,
    with_own_names,
)
from planner.errors import RecipeError, option
from planner.formats.ggml import type_of
from planner.recipe import Recipe
from planner.text import command

__all__ = ["DIALECT"]

_SURE = re.compile(r"(?m)^\S.*: *[\d.]+ *\([\d.]+-\w+\.pth\)$")
_LINE = re.compile(r"[\d.]+\s*\([\d.]+-([^)]+)\.pth\)")


def _configuration(recipe: Recipe) -> str:
    """Return the lines. Raises RecipeError for types and names that the file cannot express."""
    refuse(
        recipe.formats,
        lambda name: ":" not in name and name == name.strip() and name[:1] not in ("#", "") and name.isprintable(),
        "EvoPress", "its lines are split at the first colon and trimmed, and # begins a comment",
        "Write this model with `planner quantize`.",
    )  # fmt: skip
    lines = []
    for choice in recipe.tensors:
        bits = type_of(choice.format).evopress
        if bits is None:
            raise RecipeError(
                f"EvoPress has no number of bits for {choice.format}, which {choice.name} has.",
                f"Solve again without it: {option('types', 'all,-' + choice.format)}.",
            )
        lines.append(f"{choice.name}: {bits} ({bits}-{choice.format.upper()}.pth)\n")
    return "".join(lines)


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the lines, and the command that assembles the model from a layer database. Raises RecipeError."""
    if context.compact:
        raise RecipeError("EvoPress has no patterns: a line is one tensor.", f"Leave {option('compact')} out.")
    stitch = command(
        "python", "gguf_stitcher.py", "LAYER_DATABASE", "OUT.gguf", "--config", context.paths[".evopress.txt"],
        "--original-model", Path(recipe.model.path),
    )  # fmt: skip
    return Exported({".evopress.txt": _configuration(recipe)}, stitch)


def _read(text: str, context: ImportContext) -> Imported:
    """Return the types of tensors; of several lines for one tensor the last counts. Raises RecipeError, also for
    lines with only a number of bits, which several types have."""
    pairs = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, separator, rest = line.partition(":")
        match = _LINE.fullmatch(rest.strip())
        if not separator or match is None:
            raise RecipeError(
                f"{context.where}: line {number} is {line[:80]!r}, not TENSOR: BITS (BITS-TYPE.pth).",
                "A number of bits alone does not say which type is meant.",
            )
        pairs.append((name.strip(), match[1]))
    return with_own_names(last_of_each(pairs), context.names)


def _sniff(text: str) -> bool:
    begin = beginning(text)
    return not begin.startswith("{") and _SURE.search(begin) is not None


DIALECT = Dialect(write=_write, suffixes=(".evopress.txt",), read=_read, sniff=_sniff)
