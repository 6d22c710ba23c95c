"""A plan checked on a text: what was evaluated, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence

from planner.llama.evaluate.frontier import SURE
from planner.llama.passes.check import Checked
from planner.report.columns import Column, tabulate, wrapped

__all__ = ["check_text"]


def check_text(checked: Sequence[Checked], kept: Checked) -> str:
    """Lay out all recipes, and say how the one that is kept stands to the others."""
    columns: list[Column[Checked]] = [
        Column("recipe", lambda entry: f"{entry.rival.label}{' (mix)' if entry.rival.is_mix else ''}", "<"),
        Column("bytes", lambda entry: f"{entry.rival.recipe.size:,}"),
        Column("bpw", lambda entry: f"{entry.rival.recipe.bpw:.4f}"),
        Column("KLD", lambda entry: "{:.4g} ± {:.2g}".format(*entry.kld)),
        Column("beside the kept", lambda entry: _beside(entry, kept)),
    ]
    lines = [*tabulate(columns, checked), ""]
    if any(entry.rival.plan is None for entry in checked):
        lines += [*wrapped("In brackets: breaks a rule or limit that was given, so that it is not kept."), ""]
    return "\n".join([*lines, *wrapped(_verdict(checked, kept))])


def _beside(entry: Checked, kept: Checked) -> str:
    if entry is kept:
        return "kept"
    share, stderr = entry.beside(kept)
    text = f"{100 * share:+.1f} % ± {100 * stderr:.1f}"
    return text if entry.rival.plan is not None else f"({text})"


def _verdict(checked: Sequence[Checked], kept: Checked) -> str:
    """Say how the kept recipe stands to the best mix; if it is one, or there is none, to the best of the others."""
    others = [entry for entry in checked if entry is not kept]
    if not others:
        return f"Kept: {kept.rival.label}. Nothing else was to be compared."
    mixes = [] if kept.rival.is_mix else [entry for entry in others if entry.rival.is_mix]
    other = min(mixes or others, key=lambda entry: entry.kld[0])
    share, stderr = kept.beside(other)
    noise = "beyond the noise" if abs(share) > SURE * stderr else "within the noise"
    way = "below" if share <= 0 else "above"
    return (
        f"Kept: {kept.rival.label}. Its divergence is {100 * abs(share):.1f} % (± {100 * stderr:.1f}) {way} that of "
        f"{other.rival.label}, {noise} ({SURE:g} standard errors)."
    )
