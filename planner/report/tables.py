"""Tables in plain text, 80 columns wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.recipes import Choice, Recipe
from planner.sensitivity import role_of
from planner.sizes import format_size
from planner.text import plain

if TYPE_CHECKING:
    from planner.plan import LimitUse, Plan  # whose imports `planner inspect` need not wait for

__all__ = ["explanation", "limit_line", "role_table"]

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
        rows.append((plain(role), str(len(choices)), _size(choices), f"{100 * share:.1f} %", _types(choices)))
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


def limit_line(limit: LimitUse) -> str:
    """A limit at the answer: how much is used and what is left."""
    if limit.name == "bpw":
        return f"bpw: {limit.capacity - limit.used:,} bits under it"
    used, left = format_size(limit.used), limit.capacity - limit.used
    return f"{limit.name}: {used} of {format_size(limit.capacity)}, {left:,} bytes left"


def explanation(plan: Plan, tensor: str) -> str:
    """Why a tensor has its format: the options beside it, what they cost and gain."""
    why = plan.explain(tensor)
    lines = [f"{tensor} as {why.option.label}: {format_size(why.option.bytes)}, loss {why.option.loss:.4g}"]
    for step, word in ((why.better, "better"), (why.worse, "worse")):
        if step is None:
            lines.append(f"  no {word} format")
            continue
        kept = "fits" if step.fits else "does not fit"
        lines.append(
            f"  next {word}: {step.option.label:8} {step.bytes:+,} bytes, loss {step.loss:+.4g}, "
            f"net {step.net:+.4g} at the price of bytes; {kept}"
        )
    return "\n".join(lines)
