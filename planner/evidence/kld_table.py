"""Tables of the GGUF-Tool-Suite (`kld_results.csv`): the KL divergence when one tensor alone is dropped to a low type.

A row a type: `QTYPE,TENSOR,TENSOR,...`, then the type and a number for each tensor; 404 and empty: not measured. Its
other tables look the same and are refused: perplexities, percentages of any kind, groups of tensors.

A run that has not finished is `kld_results_partial.csv`; `fill_missing_metric.py` makes a table without gaps of it
(`..._03percent_interpolated.csv`), by curves over the layers. What was measured has at most the six decimals that
llama-perplexity prints, what was filled in has eight, and that tells them apart. A partial table does not: the gaps of
one are measured in a later one, which looks the same in all other cells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.dialects.table import read_rows
from planner.errors import RecipeError
from planner.text import some

__all__ = ["KldTable", "read_kld_table"]

_FAILED = 404.0
_ABSENT = ("", "nan", "n/a", "na", "none", "null", "-", "--")
_GROUP = re.compile(r"group[0-9]+|bpw")
_REMEDY = "Give a kld_results.csv of the GGUF-Tool-Suite, of single tensors."
# Nats a token. The least divergence of one tensor is 5e-2 or less in each of the tables that the suite has; even chance
# among all tokens is some 10 away, and no perplexity is below 1.
_LEAST = 0.5
_MOST = 100.0
_NOISE = 1e-3  # divergences below zero by less are zero but for rounding
_DECIMALS = 6  # of `Mean KLD: %10.6lf` in tools/perplexity/perplexity.cpp
_MEASURED = 0.5  # of the numbers: where fewer have so few decimals, the table is of somebody who prints more


@dataclass(frozen=True)
class KldTable:
    """Type (as spelt there) → tensor → KL divergence (nats per token, above zero); `notes` on skipped entries."""

    klds: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


def read_kld_table(text: str, where: str) -> KldTable:
    """Parse a table. Raises RecipeError, also for numbers that cannot be divergences."""
    rows = read_rows(text, where, _REMEDY)
    names = [name.strip() for name in rows[0]] if rows else []
    if names[1:] and all(map(_GROUP.fullmatch, names[1:])):
        raise RecipeError(
            f"{where} is of groups of tensors that were dropped together ({some(names[1:])}), which says nothing of "
            "any one of them.", _REMEDY,
        )  # fmt: skip
    klds: dict[str, dict[str, float]] = {}
    left_out: dict[str, list[str]] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise RecipeError(f"{where}: row {number} has {len(row)} fields, not {len(names)}.", "Repair the table.")
        kind = row[0].strip()
        for name, text_ in zip(names[1:], row[1:], strict=True):
            kld, why = _number(text_, name, f"{where}: row {number}")
            if why:
                left_out.setdefault(why, []).append(name)
            else:
                klds.setdefault(kind, {})[name] = kld
        _plausible(list(klds.get(kind, {}).values()), f"{where}: row {number} ({kind[:40]})")
    if filled_in := _take_filled_in(klds):
        left_out["filled in by a curve"] = filled_in
    if not any(klds.values()):
        raise RecipeError(f"{where} holds no divergences.", _REMEDY)
    notes = [f"{len(names):,} cells are left out, {why}: {some(names)}." for why, names in left_out.items()]
    return KldTable(klds, tuple(notes))


def _take_filled_in(klds: Mapping[str, dict[str, float]]) -> list[str]:
    """Take out the numbers that were not measured; return the names of their tensors. They have more decimals than are
    printed, while most have not."""
    every = [(row, name, kld) for row in klds.values() for name, kld in row.items()]
    longer = [(row, name) for row, name, kld in every if kld != round(kld, _DECIMALS)]
    if len(longer) > (1 - _MEASURED) * len(every):
        return []
    for row, name in longer:
        del row[name]
    return [name for _, name in longer]


def _number(text: str, name: str, where: str) -> tuple[float, str]:
    """Return a cell's divergence, and the reason if it has none ("" otherwise). Raises RecipeError for other
    numbers."""
    bare = text.strip().removesuffix("%").rstrip()
    if _GROUP.fullmatch(name):
        return 0.0, "of groups of tensors"
    if bare.lower() in _ABSENT:
        return 0.0, "not measured"
    try:
        kld = float(bare)
    except ValueError as error:
        raise RecipeError(f"{where} has {text[:40]!r} for {name[:80]}, no number.", "Repair the table.") from error
    if kld == _FAILED or not math.isfinite(kld):
        return 0.0, "not measured"
    if "%" in text:
        raise RecipeError(
            f"{where} has percentages ({text.strip()[:20]} for {name[:80]}), not divergences: of tokens that stay the "
            "same (topp_results.csv), or by which perplexity or speed changes.", _REMEDY,
        )  # fmt: skip
    if kld < -_NOISE:
        raise RecipeError(
            f"{where} has {kld:g} for {name[:80]}, and no divergence is negative: these seem to be differences, such "
            "as of perplexities.", _REMEDY,
        )  # fmt: skip
    return kld, "" if kld > 0 else "without any divergence"


def _plausible(klds: Sequence[float], where: str) -> None:
    """Raise RecipeError if no number of a row is near zero, as some divergences of single tensors always are."""
    if not klds or min(klds) < _LEAST:
        return
    least, most = min(klds), max(klds)
    if most <= 1:
        what = "shares of tokens that stay the same"
    elif least > _MOST / 2 and most <= _MOST:
        what = "percentages, such as of tokens that stay the same (topp_results.csv)"
    else:
        what = "perplexities (ppl_results.csv)"
    raise RecipeError(
        f"{where} has numbers from {least:g} to {most:g}, too far from zero for divergences of single tensors: they "
        f"seem to be {what}.", _REMEDY,
    )  # fmt: skip
