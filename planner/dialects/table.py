"""A recipe as a table (CSV, RFC 4180), for spreadsheets and scripts: `tensor,format,bytes,err,loss,why`.

Read back, only the columns `tensor` and `format` count, wherever they stand, and semicolons or tabs will do too.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from planner.dialects.dialect import Exported, Found
from planner.errors import RecipeError, option
from planner.recipe import Recipe

__all__ = ["export_table", "is_table", "read_rows", "read_table"]

_LARGEST_FIELD = 1 << 20  # characters
_SAID = re.compile(r'"?sep=([,;\t])"?\r?', re.IGNORECASE)
_DECIMAL = re.compile(r"\s*[-+]?\d*,\d+(e[-+]?\d+)?\s*%?\s*", re.IGNORECASE)
_COLUMNS = ("tensor", "format", "bytes", "err", "loss", "why")


def export_table(recipe: Recipe, paths: Mapping[str, Path], *, compact: bool, threads: int) -> Exported:
    """The table; every tensor is a row, so `compact` is refused. Raises RecipeError."""
    del paths, threads
    if compact:
        raise RecipeError(
            "A table has a row for every tensor, which cannot be merged.", f"Leave {option('compact')} out."
        )
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


def is_table(text: str) -> bool:
    """Whether text begins with the names of columns, `tensor` and `format` among them."""
    _, body = _separated(text)
    fields = re.split(r"[,;\t]", body.partition("\n")[0].replace('"', "").lower())
    return {"tensor", "format"} <= {field.strip() for field in fields}


def read_table(text: str, where: str) -> Found:
    """Tensor → format. Raises RecipeError."""
    remedy = "Give a CSV with the columns tensor and format."
    rows = read_rows(text, where, remedy)
    columns = [column.strip().lower() for column in rows[0]] if rows else []
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        named = dict(zip(columns, row, strict=False))
        name, fmt = named.get("tensor"), named.get("format")
        if name is None or not fmt:
            raise RecipeError(f"{where}: row {number} lacks a tensor or its format.", remedy)
        if found.setdefault(name, fmt) != fmt:
            raise RecipeError(f"{where} gives {name} two formats: {found[name]} and {fmt}.", "Remove one of them.")
    return Found(found)


def read_rows(text: str, where: str, remedy: str) -> list[list[str]]:
    """The rows of a table that are not empty, as spreadsheets write it: with commas, semicolons or tabs between fields,
    and decimal commas where those are not the former. Raises RecipeError."""
    separator, body = _separated(text)
    csv.field_size_limit(_LARGEST_FIELD)
    try:
        rows = [row for row in csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise RecipeError(f"{where} is no table: {error}.", remedy) from error
    if separator == ",":
        return rows
    return [[field.replace(",", ".") if _DECIMAL.fullmatch(field) else field for field in row] for row in rows]


def _separated(text: str) -> tuple[str, str]:
    """What stands between fields by the first line: as Excel says it (`sep=;`), or else what is there most often."""
    first, _, rest = text.partition("\n")
    if said := _SAID.fullmatch(first):
        return said[1], rest
    return max(",;\t", key=first.count), text
