"""Tables in plain text, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.names.gguf import role_of
from planner.recipe import Choice, Recipe
from planner.sizes import format_size
from planner.text import command, plain

if TYPE_CHECKING:
    from planner.plan.plan import LimitUse, Plan  # whose imports `planner inspect` need not wait for

__all__ = ["explanation", "limit_line", "next_step", "role_table", "size_line"]

_WIDTH = 80
_LONGEST_PATH = 4096  # PATH_MAX of Linux


def role_table(recipe: Recipe) -> str:
    """A recipe by role: how many tensors in which formats, their bytes, bits per weight and share of the loss."""
    roles: dict[str, list[Choice]] = {}
    kept: list[Choice] = []
    for choice in recipe.tensors:
        if choice.left_alone:
            kept.append(choice)
        else:
            roles.setdefault(role_of(choice.name)[1], []).append(choice)
    rows = [("role", "n", "size", "loss", "types")]
    for role, choices in sorted(roles.items(), key=lambda item: -sum(choice.loss or 0 for choice in item[1])):
        rows.append((plain(role), str(len(choices)), _size(choices), _share(recipe, choices), _types(choices)))
    if kept:
        rows.append(("left alone", str(len(kept)), _size(kept), "", _types(kept)))
    return "\n".join(_lines(rows))


def size_line(recipe: Recipe) -> str:
    """What the recipe's file weighs; of MLX's, the tensors in it."""
    label, what = ("File", "") if recipe.family == "gguf" else ("Data", " of tensors")
    return f"{label:<10} {recipe.size:,} bytes ({format_size(recipe.size)}){what}, {recipe.bpw:.4f} bpw"


def next_step(recipe: Recipe, path: Path, model: Path | None = None) -> str:
    """The command that makes something of a recipe, of `model` or the one that it names."""
    if recipe.family == "mlx":
        return command("planner", "export", path, "--to", "mlx-lm")
    said = recipe.model.path
    named = Path(said) if 0 < len(said) <= _LONGEST_PATH else "MODEL"
    return command("planner", "quantize", model or named, path, "OUT.gguf")


def _share(recipe: Recipe, choices: Sequence[Choice]) -> str:
    """Of the loss; nothing where losses are not known."""
    if recipe.loss is None:
        return ""
    part = sum(choice.loss or 0 for choice in choices)
    return f"{100 * part / recipe.loss if recipe.loss > 0 else 0.0:.1f} %"


def _size(choices: Sequence[Choice]) -> str:
    return format_size(sum(choice.bytes for choice in choices))


def _types(choices: Sequence[Choice]) -> str:
    counts = Counter(choice.format for choice in choices)
    order = {choice.format: choice.err or 0 for choice in sorted(choices, key=lambda choice: choice.err or 0)}
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
    """Why a tensor has its format: what the next better and worse one would change, and the prices.

    Bytes, losses and whether a step fits are of all that is tied together. `net` is the loss that a step adds and what
    its bytes cost at the prices: above 0, the step is a bad bargain.
    """
    why, tied = plan.explain(tensor), plan.tied_to(tensor)
    lines = [f"{tensor} as {why.option.label}: {format_size(why.option.bytes)}, loss {why.option.loss:.4g}"]
    if tied:
        lines += _filled("with", ", ".join(tied))
    left = {limit.name: limit.capacity - limit.used for limit in plan.limits}
    for step, word in ((why.better, "better"), (why.worse, "worse")):
        if step is None:
            lines += _filled(word, "none")
            continue
        over = [name for name, more in step.used.items() if more > left[name]]
        fits = f"over {', '.join(over)}" if over else "fits"
        change = f"{step.bytes:+,} bytes, loss {step.loss:+.3g}, net {step.net:+.3g}; {fits}"
        lines += _filled(word, f"{step.option.label:7} {change}")
    for word, (name, price) in zip(["price", *[""] * len(why.prices)], why.prices.items(), strict=False):
        lines += _filled(word, f"loss {price:.3g} a {'bit' if name == 'bpw' else 'byte'} of {name}")
    return "\n".join(lines)


def _filled(word: str, text: str) -> list[str]:
    """Text within the width, beside a word that says what it is."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"  {word:6}  ", subsequent_indent=" " * 10, break_on_hyphens=False,
        break_long_words=False, drop_whitespace=True,
    )  # fmt: skip
