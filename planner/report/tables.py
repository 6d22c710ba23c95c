"""Recipes and plans in plain text, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from planner.formats.registry import family_named
from planner.names.gguf import role_of
from planner.recipe import Choice, Recipe
from planner.report.columns import WIDTH, Column, tabulate
from planner.sizes import format_size
from planner.text import command, plain

if TYPE_CHECKING:
    from planner.plan.plan import LimitUse, Plan  # whose imports `planner inspect` need not wait for

__all__ = ["explanation", "limit_line", "next_step", "role_table", "size_line"]

_LONGEST_PATH = 4096  # PATH_MAX of Linux


class _Group(NamedTuple):
    """The tensors of one role, and the recipe's loss, of which theirs is a share."""

    role: str
    choices: Sequence[Choice]
    whole: float | None  # None: not known, or not asked for


_COLUMNS = (
    Column[_Group]("role", lambda group: group.role, "<"),
    Column[_Group]("n", lambda group: str(len(group.choices))),
    Column[_Group]("size", lambda group: format_size(sum(choice.bytes for choice in group.choices))),
    Column[_Group]("loss", lambda group: _share(group)),
    Column[_Group]("types", lambda group: _types(group.choices), "<"),
)


def role_table(recipe: Recipe) -> str:
    """Lay out a recipe by role: tensors, bytes, share of the loss and formats; one line of `_COLUMNS` a column."""
    roles: dict[str, list[Choice]] = {}
    kept: list[Choice] = []
    for choice in recipe.tensors:
        if choice.left_alone:
            kept.append(choice)
        else:
            roles.setdefault(role_of(choice.name)[1], []).append(choice)
    groups = [_Group(plain(role), choices, recipe.loss) for role, choices in roles.items()]
    groups.sort(key=lambda group: -_loss(group))
    if kept:
        groups.append(_Group("left alone", kept, None))
    return "\n".join(tabulate(_COLUMNS, groups))


def size_line(recipe: Recipe) -> str:
    """Format the size of the recipe's file; for MLX, of the tensors in it."""
    label, what = ("File", "") if family_named(recipe.family).whole_file else ("Data", " of tensors")
    return f"{label:<10} {recipe.size:,} bytes ({format_size(recipe.size)}){what}, {recipe.bpw:.4f} bpw"


def next_step(recipe: Recipe, path: Path, model: Path | None = None) -> str:
    """Return the command that applies a recipe to `model`, or to the model that it names."""
    dialect = family_named(recipe.family).exported_to
    if dialect is not None:
        return command("planner", "export", path, "--to", dialect)
    said = recipe.model.path
    named = Path(said) if 0 < len(said) <= _LONGEST_PATH else "MODEL"
    return command("planner", "quantize", model or named, path, "OUT.gguf")


def _loss(group: _Group) -> float:
    return sum(choice.loss or 0 for choice in group.choices)


def _share(group: _Group) -> str:
    """Format the group's share of the loss; nothing where losses are not known."""
    if group.whole is None:
        return ""
    return f"{100 * _loss(group) / group.whole if group.whole > 0 else 0.0:.1f} %"


def _types(choices: Sequence[Choice]) -> str:
    counts = Counter(choice.format for choice in choices)
    order = {choice.format: choice.err or 0 for choice in sorted(choices, key=lambda choice: choice.err or 0)}
    return " ".join(
        fmt if len(counts) == 1 else f"{fmt}*{counts[fmt]}" for fmt in sorted(counts, key=lambda fmt: -order[fmt])
    )


def limit_line(limit: LimitUse) -> str:
    """Format a limit at the solution: how much is used and what is left."""
    if limit.name == "bpw":
        return f"bpw: {limit.capacity - limit.used:,} bits under it"
    used, left = format_size(limit.used), limit.capacity - limit.used
    return f"{limit.name}: {used} of {format_size(limit.capacity)}, {left:,} bytes left"


def explanation(plan: Plan, tensor: str) -> str:
    """Explain a tensor's format: what the next better and worse one would change, and the prices.

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
    """Wrap a text beside its label."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"  {word:6}  ", subsequent_indent=" " * 10, break_on_hyphens=False,
        break_long_words=False, drop_whitespace=True,
    )  # fmt: skip
