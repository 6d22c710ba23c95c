"""`planner diff`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import only_state
from planner.errors import RecipeError
from planner.inputs.kinds import GGUF
from planner.inputs.reading import look

if TYPE_CHECKING:
    from planner.plan.losses import Losses
    from planner.report.difference import Side

__all__ = ["diff"]

_COLOURS = {"▲": "red", "△": "yellow", "▽": "cyan", "▼": "blue", "≠": "magenta", "·": "bright_black"}


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--state", type=click.Path(path_type=Path), help="State file of the model, for losses.")
def diff(a: Path, b: Path, state: Path | None) -> None:
    """Show how the mixes A and B differ: recipes, or GGUF models of anybody.

    With the model's state file (or the only one in this directory, where it fits), also what the differences cost.
    """
    from planner.report.difference import GLYPHS, PLAIN_GLYPHS, difference
    from planner.text import plain

    losses = _losses(state, strict=state is not None)
    sides = [_side(path, losses) for path in (a, b)]
    known = all(cell.loss is not None for side in sides for cell in side.tensors.values())
    source = losses.source if losses is not None and (known or state is not None) else None
    glyphs = GLYPHS if _can_say(GLYPHS) else PLAIN_GLYPHS
    nats = losses is not None and losses.nats
    text = plain(difference(*sides, source=source, nats=nats, glyphs=glyphs), keep="\n")
    if not _can_say("…→"):
        text = text.replace("…", "~").replace("→", "->")
    # in maps alone: rows of glyphs after a role's name
    click.echo("".join(click.style(mark, fg=_COLOURS[mark]) if mark in _COLOURS else mark for mark in text))


def _can_say(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _losses(state: Path | None, *, strict: bool) -> Losses | None:
    from planner.errors import StateFileError
    from planner.plan.findings import Findings
    from state import StateError, Store

    state = state or only_state()
    if state is None:
        return None
    try:
        with Store.open(state, read_only=True) as store:
            return Findings.read(store).losses()
    except (StateError, StateFileError):
        if strict:
            raise
        return None


def _side(path: Path, losses: Losses | None) -> Side:
    """Read a recipe or a GGUF, each tensor with its loss by the state, or else by the recipe itself."""
    from planner.gguf import open_model
    from planner.recipe import parse_recipe
    from planner.recipe.recount import recount
    from planner.report.difference import Cell, Side

    given = look(path, RecipeError)
    if given.kind == GGUF:
        with open_model(path) as model:
            cells = {
                tensor.name: Cell(tensor.format, tensor.nbytes, tensor.shape, _loss(losses, tensor.name, tensor.format))
                for tensor in model.tensors
            }
            return Side(given.name, model.size, cells)
    recipe, _ = recount(parse_recipe(given.text(RecipeError, "a recipe or a GGUF"), str(path)))
    cells = {
        choice.name: Cell(
            choice.format,
            choice.bytes,
            choice.shape,
            # in MLX norms are not stored as the state knows them, and lose nothing either
            choice.loss if choice.left_alone else _loss(losses, choice.name, choice.format),
        )
        for choice in recipe.tensors
    }
    return Side(given.name, recipe.size, cells)


def _loss(losses: Losses | None, name: str, fmt: str) -> float | None:
    known = None if losses is None else losses.error_and_loss(name, fmt)
    return None if known is None else known[1]
