"""A dialect of no quantizer, with all that one needs: lines of `TENSOR -> TYPE` under a heading."""

from __future__ import annotations

from planner.dialects.dialect import Dialect, ExportContext, Exported, ImportContext, Imported
from planner.errors import RecipeError
from planner.recipe import Recipe
from planner.text import command

__all__ = ["DIALECT"]

_HEADING = "These are types:"


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    lines = [_HEADING, *(f"{choice.name} -> {choice.format}" for choice in recipe.tensors)]
    return Exported({".pretend": "\n".join(lines) + "\n"}, command("pretend", context.paths[".pretend"]))


def _read(text: str, context: ImportContext) -> Imported:
    formats = {}
    for line in text.splitlines()[1:]:
        name, arrow, kind = line.partition(" -> ")
        if not arrow:
            raise RecipeError(f"{context.where} has a line that is no TENSOR -> TYPE: {line[:80]!r}.", "Repair it.")
        formats[name] = kind
    return Imported(formats)


DIALECT = Dialect(write=_write, suffixes=(".pretend",), read=_read, sniff=lambda text: text.startswith(_HEADING))
