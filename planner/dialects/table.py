"""A recipe as a table (CSV, RFC 4180), for spreadsheets and scripts: `tensor,format,bytes,err,loss,why`.

Read back, only the columns `tensor` and `format` count, wherever they stand, and semicolons or tabs will do too.
"""

from __future__ import annotations

import csv
import io
import re
from typing import get_args

from planner.dialects.dialect import Dialect, ExportContext, Exported, ImportContext, Imported, with_own_names
from planner.errors import RecipeError, option
from planner.recipe import Recipe
from planner.terms import FamilyName

__all__ = ["DIALECT", "is_table", "read_rows", "read_table"]

_LARGEST_FIELD = 1 << 20  # characters
_SAID = re.compile(r'"?sep=([,;\t])"?\r?', re.IGNORECASE)
_DECIMAL = re.compile(r"\s*[-+]?\d*,\d+(e[-+]?\d+)?\s*%?\s*", re.IGNORECASE)
_COLUMNS = ("tensor", "format", "bytes", "err", "loss", "why")


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the table; every tensor is a row, so `compact` is refused. Raises RecipeError."""
    if context.compact:
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
    """Quote a field where needed; Python's writer leaves a lone carriage return bare, which readers reject."""
    bare = not any(character in text for character in ',"\r\n') and text == text.strip()
    return text if bare else '"' + text.replace('"', '""') + '"'


def is_table(text: str) -> bool:
    """Return whether text begins with a row of column names, `tensor` and `format` among them."""
    _, body = _separated(text)
    fields = re.split(r"[,;\t]", body.partition("\n")[0].replace('"', "").lower())
    return {"tensor", "format"} <= {field.strip() for field in fields}


def read_table(text: str, where: str) -> Imported:
    """Return the formats of tensors. Raises RecipeError."""
    remedy = "Give a CSV with the columns tensor and format."
    rows = read_rows(text, where, remedy)
    columns = [column.strip().lower() for column in rows[0]] if rows else []
    formats: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        named = dict(zip(columns, row, strict=False))
        name, fmt = named.get("tensor"), named.get("format")
        if name is None or not fmt:
            raise RecipeError(f"{where}: row {number} lacks a tensor or its format.", remedy)
        if formats.setdefault(name, fmt) != fmt:
            raise RecipeError(f"{where} gives {name} two formats: {formats[name]} and {fmt}.", "Remove one of them.")
    return Imported(formats)


def read_rows(text: str, where: str, remedy: str) -> list[list[str]]:
    """Return the non-empty rows of a table as spreadsheets write it: fields separated by commas, semicolons or tabs;
    unless commas separate, decimal commas become points. Raises RecipeError."""
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
    """Return the separator and the remaining text: Excel names the separator in the first line (`sep=;`); otherwise it
    is the most frequent one there."""
    first, _, rest = text.partition("\n")
    if said := _SAID.fullmatch(first):
        return said[1], rest
    return max(",;\t", key=first.count), text


def _read(text: str, context: ImportContext) -> Imported:
    return with_own_names(read_table(text, context.where), context.names)


DIALECT = Dialect(
    write=_write,
    suffixes=(".csv",),
    families=get_args(FamilyName),
    read=_read,
    sniff=is_table,
    own_suffix=".csv",
)
