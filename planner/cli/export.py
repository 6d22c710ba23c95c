"""`planner export`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import threads_option
from planner.dialects.registry import writable
from planner.errors import RecipeError, UsageError
from planner.inputs.reading import look

__all__ = ["export"]


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--to", "dialect", type=click.Choice(writable()), metavar="DIALECT", required=True,
    help=f"Whose input to write: {', '.join(writable())}.",
)  # fmt: skip
@click.option("--compact", is_flag=True, help="Merge tensors into few patterns that match the same.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: RECIPE's name, other suffix]"
)
@threads_option
def export(recipe: Path, dialect: str, compact: bool, output: Path | None, threads: int) -> None:
    """Write RECIPE for another quantizer, and print the command that goes with it.

    What the other quantizer cannot say is an error or, where something near can be said, a note.
    """
    from planner.cli.messages import wrapped
    from planner.dialects.exports import export_recipe, files_of
    from planner.files import write_atomically
    from planner.recipe import parse_recipe
    from planner.recipe.recount import recount
    from planner.text import plain

    given = look(recipe, RecipeError)
    plan, _ = recount(parse_recipe(given.text(RecipeError, "a recipe"), str(recipe)))
    if given.piped and output is None:
        raise UsageError("A recipe from a pipe gives no name to the output.", "Name it with -o.")
    texts, exported = export_recipe(plan, dialect, recipe, output=output, compact=compact, threads=threads)
    for path, data in files_of(plan, texts, exported).items():
        write_atomically(path, data)
    for note in exported.notes:
        click.echo(wrapped(plain(f"Note: {note}")), err=True)
    click.echo(plain(exported.command, keep="\n") if exported.command else next(iter(map(str, texts))))
