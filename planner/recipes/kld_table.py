"""Tables of the GGUF-Tool-Suite (`kld_results.csv`): the KL divergence when one tensor alone is dropped to a low type.

A row a type: `QTYPE,TENSOR,TENSOR,...`, then the type and a number for each tensor; 404 and empty: not measured.
"""

from __future__ import annotations

import math
import re

from planner.errors import RecipeError
from planner.recipes.table import read_rows

__all__ = ["is_kld_table", "read_kld_table"]

_FAILED = 404.0
_BEGIN = re.compile(r"""("?sep=."?\r?\n)?"?QTYPE"?[,;\t]""")


def is_kld_table(text: str) -> bool:
    """Whether text begins as such a table."""
    return _BEGIN.match(text) is not None


def read_kld_table(text: str, where: str) -> dict[str, dict[str, float]]:
    """Type (as spelt there) → tensor → KL divergence (nats per token). Raises RecipeError."""
    rows = read_rows(text, where, "Give a kld_results.csv of the GGUF-Tool-Suite.")
    found: dict[str, dict[str, float]] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise RecipeError(f"{where}: row {number} has {len(row)} fields, not {len(rows[0])}.", "Repair the table.")
        for name, value in zip(rows[0][1:], row[1:], strict=True):
            try:
                kld = float(value.rstrip("%")) if value.strip() else math.nan
            except ValueError as error:
                raise RecipeError(
                    f"{where}: row {number} has {value[:40]!r} for {name}, no number.", "Repair the table."
                ) from error
            if math.isfinite(kld) and kld not in (_FAILED,) and kld >= 0:
                found.setdefault(row[0], {})[name] = kld
    if not any(found.values()):
        raise RecipeError(f"{where} holds no divergences.", "Give a kld_results.csv of the GGUF-Tool-Suite.")
    return found
