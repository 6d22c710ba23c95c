"""Tables in plain text, 80 columns wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planner.recipes import Choice, Recipe
from planner.sensitivity import role_of
from planner.sizes import format_size

__all__ = ["role_table"]

_WIDTH = 80


def role_table(recipe: Recipe) -> str:
    """A recipe by role: how many tensors in which formats, their bytes, bits per weight and share of the loss."""
    roles: dict[str, list[Choice]] = {}
    kept: list[Choice] = []
    for choice in recipe.tensors:
        if choice.why.startswith("left alone"):
            kept.append(choice)
        else:
            roles.setdefault(role_of(choice.name)[1], []).append(choice)
    rows = [("role", "n", "size", "loss", "types")]
    for role, choices in sorted(roles.items(), key=lambda item: -sum(choice.loss for choice in item[1])):
        share = sum(choice.loss for choice in choices) / recipe.loss if recipe.loss > 0 else 0.0
        rows.append((role, str(len(choices)), _size(choices), f"{100 * share:.1f} %", _types(choices)))
    if kept:
        rows.append(("left alone", str(len(kept)), _size(kept), "", _types(kept)))
    return "\n".join(_lines(rows))


def _size(choices: Sequence[Choice]) -> str:
    return format_size(sum(choice.bytes for choice in choices))


def _types(choices: Sequence[Choice]) -> str:
    counts = Counter(choice.format for choice in choices)
    order = {choice.format: choice.err for choice in sorted(choices, key=lambda choice: choice.err)}
    return " ".join(
        fmt if len(counts) == 1 else f"{fmt}*{counts[fmt]}" for fmt in sorted(counts, key=lambda fmt: -order[fmt])
    )


def _lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    last = _WIDTH - sum(widths) - 8
    lines = []
    for row in rows:
        head = f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  "
        words, text = row[4].split(), ""
        for word in words:
            if text and len(text) + 1 + len(word) > last:
                lines.append(head + text)
                head, text = " " * len(head), ""
            text = f"{text} {word}".strip()
        lines.append(head + text)
    return lines
