"""Allocations of RCO (`*.rco-allocation.txt`), as ISTA-DASLab publishes them beside its GGUFs.

Lines `TENSOR: TYPE`, one for every tensor of the file, types in capitals; those that begin with `#` are comments (a
count of the types, the bits aimed at). Others write `TENSOR=TYPE`. What else stands in such a file, as the experts that
were kept of a pruned model, says nothing of types.
"""

from __future__ import annotations

import re
from collections import Counter

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
from planner.formats.ggml import formats, nearest_known
from planner.recipe import Recipe
from planner.text import plain, some

__all__ = ["DIALECT"]

_LINE = re.compile(r"([^\s:=#][^\s:=]*)\s*[:=]\s*([A-Za-z]\w*)")
_SURE = re.compile(r"(?m)^[ \t]*([^\s:=#][^\s:=]*):[ \t]+([A-Za-z]\w*)[ \t]*\r?$")


def _allocation(recipe: Recipe) -> str:
    """Return the lines. Raises RecipeError for names that a line cannot hold."""
    refuse(
        recipe.formats, lambda name: name.isprintable() and _LINE.fullmatch(f"{name}: F32"),
        "An allocation", "its lines are split at colons and white space, and # begins a comment",
        "Write this model with `planner quantize`.",
    )  # fmt: skip
    counts = Counter(choice.format.upper() for choice in recipe.tensors)
    head = [
        f"# Recipe of planner {recipe.planner} for {plain(recipe.model.name)}",
        f"# {recipe.size:,} bytes, {recipe.bpw:.4f} bpw",
        f"# {', '.join(f'{name} {count}' for name, count in counts.most_common())}",
    ]
    lines = [f"{choice.name}: {choice.format.upper()}" for choice in recipe.tensors]
    return "".join(f"{line}\n" for line in (*head, *lines))


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the lines; every tensor has one, so `compact` is refused. Raises RecipeError."""
    if context.compact:
        raise RecipeError("An allocation has no patterns: a line is one tensor.", f"Leave {option('compact')} out.")
    return Exported({".rco-allocation.txt": _allocation(recipe)})


def _read(text: str, context: ImportContext) -> Imported:
    """Return the types of tensors; of several lines for one tensor the last counts. Notes name lines that give no type.
    Raises RecipeError if none does."""
    pairs, others = [], []
    for raw in text.split("\n"):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if match := _LINE.fullmatch(line):
            pairs.append((match[1], match[2]))
        else:
            others.append(repr(line[:60]))
    if not pairs:
        raise RecipeError(f"{context.where} holds no line TENSOR: TYPE.", "Comments begin with #.")
    imported = last_of_each(pairs)
    notes = [f"{len(others):,} lines give no tensor a type: {some(others)}."] if others else []
    return with_own_names(Imported(imported.formats, (*imported.notes, *notes)), context.names)


def _sniff(text: str) -> bool:
    known = {name.lower() for name in formats()}
    found = _SURE.findall(beginning(text))
    return any("." in name and (kind.lower() in known or nearest_known(kind) is not None) for name, kind in found)


DIALECT = Dialect(
    write=_write, suffixes=(".rco-allocation.txt",), read=_read, sniff=_sniff, own_suffix=".rco-allocation.txt"
)
