"""`planner export`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import threads_option

__all__ = ["export"]


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--to", "dialect", type=click.Choice(["llama-quantize"]), required=True, help="Whose input to write.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: RECIPE's name, .types.txt]"
)
@threads_option
def export(recipe: Path, dialect: str, output: Path | None, threads: int) -> None:
    """Write RECIPE for another quantizer, and print the command that goes with it."""
    from planner.files import write_atomically
    from planner.recipes import load_recipe
    from planner.recipes.llama_quantize import command_line, tensor_types

    plan = load_recipe(recipe)
    path = output or recipe.with_suffix(".types.txt")
    write_atomically(path, tensor_types(plan).encode())
    click.echo(command_line(plan, path, threads))
