"""`planner import`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import find_state, only_state
from planner.dialects.registry import readable

__all__ = ["import_command"]


@click.command(name="import")
@click.argument("file")
@click.option("--model", type=click.Path(path_type=Path), help="Model the recipe is for.")
@click.option("--imatrix", type=click.Path(path_type=Path), help="With --model: the imatrix to quantize it with.")
@click.option("--state", type=click.Path(path_type=Path), help="Its state file, for losses.")
@click.option(
    "--from",
    "dialect",
    metavar="DIALECT",
    type=click.Choice(readable()),
    help=f"What FILE is: {', '.join(readable())}.  [default: told by content]",
)
@click.option("--nearest", is_flag=True, help="Replace types of ik_llama.cpp alone by ggml's nearest in bits.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="recipe.json", show_default=True)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
def import_command(
    file: str,
    model: Path | None,
    imatrix: Path | None,
    state: Path | None,
    dialect: str | None,
    nearest: bool,
    output: Path,
    force: bool,
) -> None:
    """Make a recipe of FILE: any GGUF (which type has each of its tensors?), a tensor-type file, a .recipe, --custom-q
    rules (a file, or the rules themselves), a table, the config.json of a model that MLX quantized, or a recipe that
    was edited by hand. A .bpw_state of --target-bpw and a kld_results.csv of the GGUF-Tool-Suite become measurements in
    the state instead.

    Sizes and losses are worked out for --model, for the model of --state, or of the only state file in this directory.
    Without any of these, a GGUF's recipe is for itself. Whatever could not be taken over as it was is said.
    """
    from planner.cli.messages import wrapped
    from planner.importing import identify, import_measurements, import_recipe
    from planner.recipe import save_recipe
    from planner.report import role_table, size_line
    from planner.text import plain

    source = identify(file, dialect)
    if source.has_measurements:
        target = find_state(state, model)
        notes = import_measurements(source, target, model=model, imatrix=imatrix)
        for line in (*notes, f"State      {target}"):
            click.echo(wrapped(plain(line)))
        return
    if model is None and state is None:
        state = only_state()
    assessment = import_recipe(source, model=model, imatrix=imatrix, state=state, nearest=nearest)
    recipe = assessment.recipe
    save_recipe(recipe, output, force=force)
    click.echo(role_table(recipe))
    click.echo(f"\n{size_line(recipe)}")
    loss = "not known" if recipe.loss is None else f"{recipe.loss:.6g} by {recipe.sensitivity}"
    click.echo(f"Loss       {loss}")
    for note in assessment.notes:
        click.echo(wrapped(plain(f"Note: {note}")))
    click.echo(f"Recipe     {output}")
