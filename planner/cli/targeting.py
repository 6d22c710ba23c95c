"""Options that say what a file may lose, where its size is what is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.options import grouped

if TYPE_CHECKING:
    from planner.plan.plan import Plan
    from planner.plan.target import Target

__all__ = ["Wanted", "make_target", "reached_text", "target_options"]


class Wanted(NamedTuple):
    """What a file may lose, as a user writes it."""

    kld: float | None
    loss: float | None
    than: str | None


target_options = grouped(
    "wanted",
    Wanted,
    click.option("--kld", type=float, metavar="X", help="The smallest file whose predicted KL divergence is X."),
    click.option("--loss", type=float, metavar="X", help="The smallest file whose loss is at most X."),
    click.option("--than", metavar="FILE|MIX",
                 help="The smallest file that loses no more than another: a GGUF, a recipe, or Q4_K_M and its like."),
)  # fmt: skip


def make_target(wanted: Wanted) -> Target | None:
    """Return what options ask for; None without any. Raises UsageError, and the errors of the other file's reader."""
    if wanted == Wanted(None, None, None):
        return None
    from planner.api.others import other_file
    from planner.plan.target import Target

    than = None if wanted.than is None else other_file(wanted.than)
    return Target(loss=wanted.loss, kld=wanted.kld, than=than)


def reached_text(plan: Plan) -> list[str]:
    """Return lines that say what was reached, and how it stands to the other file."""
    from planner.sizes import format_size

    reached = plan.reached
    if reached is None:
        return []
    size, other = plan.recipe.size, reached.aim.other
    proof = "proven" if size - reached.least <= plan.recipe.size * 1e-9 else f"proven to {size - reached.least:,} bytes"
    lines = [f"Target     {reached.aim.target.title}: no smaller file does ({proof})"]
    if other is not None:
        theirs = (reached.aim.target.than and reached.aim.target.than.bytes) or other.size
        assert other.loss is not None
        lines.append(f"Than       {theirs:,} bytes ({format_size(theirs)}), {other.bpw:.4f} bpw, loss {other.loss:.6g}")
        if size == theirs:
            lines.append("           Ours is as large")
        else:
            change = f"{abs(theirs - size):,} bytes {'smaller' if size < theirs else 'larger'}"
            lines.append(f"           Ours is {change} ({100 * (size / theirs - 1):+.1f} %)")
    return lines
