"""A recipe as a table (CSV, RFC 4180), for spreadsheets and scripts: `tensor,format,bytes,err,loss,why`.

Read back, only the columns `tensor` and `format` count, wherever they stand.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from planner.errors import RecipeError
from planner.recipes.dialect import Exported, Found
from planner.recipes.recipe import Recipe

__all__ = ["export_table", "read_table"]

_COLUMNS = ("tensor", "format", "bytes", "err", "loss", "why")


def export_table(recipe: Recipe, paths: Mapping[str, Path], *, compact: bool, threads: int) -> Exported:
    """The table; every tensor is a row, so `compact` is refused. Raises RecipeError."""
    del paths, threads
    if compact:
        raise RecipeError("A table has a row for every tensor, which cannot be merged.", "Leave --compact out.")
    rows = [",".join(_COLUMNS)]
    for choice in recipe.tensors:
        numbers = ("" if value is None else repr(value) for value in (choice.err, choice.loss))
        fields = (choice.name, choice.format, str(choice.bytes), *numbers, choice.why)
        rows.append(",".join(map(_field, fields)))
    return Exported({".csv": "".join(f"{row}\n" for row in rows)})


def _field(text: str) -> str:
    """In quotes where it must be; Python's writer leaves a lone carriage return bare, which no reader then takes."""
    bare = not any(character in text for character in ',"\r\n') and text == text.strip()
    return text if bare else '"' + text.replace('"', '""') + '"'


def read_table(text: str, where: str) -> Found:
    """Tensor → format. Raises RecipeError."""
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise RecipeError(f"{where} is no table: {error}.", "Give a CSV with the columns tensor and format.") from error
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        name, fmt = row.get("tensor"), row.get("format")
        if name is None or not fmt:
            raise RecipeError(
                f"{where}: row {number} lacks a tensor or its format.", "Give a CSV with the columns tensor and format."
            )
        if found.setdefault(name, fmt) != fmt:
            raise RecipeError(f"{where} gives {name} two formats: {found[name]} and {fmt}.", "Remove one of them.")
    return Found(found)
