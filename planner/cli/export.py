"""`planner export`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import threads_option
from planner.errors import ImatrixError, RecipeError, UsageError
from planner.inputs.reading import look

__all__ = ["export"]

# As in planner.dialects.exports, which would be slow to import for --help; a test compares
_DIALECTS = ["llama-quantize", "ik_llama", "gguf-tool-suite", "mlx-lm", "auto-round", "evopress", "csv"]


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--to", "dialect", type=click.Choice(_DIALECTS), required=True, help="Whose input to write.")
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
    from planner.dialects.exports import export_recipe
    from planner.files import write_atomically
    from planner.recipe import parse_recipe
    from planner.recipe.recount import recount
    from planner.text import plain

    given = look(recipe, RecipeError)
    plan, _ = recount(parse_recipe(given.text(RecipeError, "a recipe"), str(recipe)))
    if given.piped and output is None:
        raise UsageError("A recipe from a pipe gives no name to the output.", "Name it with -o.")
    texts, exported = export_recipe(plan, dialect, recipe, output=output, compact=compact, threads=threads)
    files = {path: text.encode("utf-8", "surrogateescape") for path, text in texts.items()}
    if exported.imatrix is not None and plan.imatrix is not None:
        files[exported.imatrix] = _older_imatrix(Path(plan.imatrix.path), plan.imatrix.digest)
    for path, data in files.items():
        write_atomically(path, data)
    for note in exported.notes:
        click.echo(wrapped(plain(f"Note: {note}")), err=True)
    click.echo(plain(exported.command, keep="\n") if exported.command else next(iter(map(str, texts))))


def _older_imatrix(source: Path, digest: str) -> bytes:
    """The imatrix that the recipe was made with, as ik_llama.cpp reads it."""
    from planner.gguf import read_imatrix
    from planner.gguf.legacy import legacy_bytes

    imatrix = read_imatrix(source)
    if imatrix.digest != digest:
        raise ImatrixError(f"{source} is not the imatrix that the recipe was made with.", "Put that one there.")
    values = ((name, entry.values) for name, entry in imatrix.entries.items())
    return legacy_bytes(values, chunk_count=imatrix.chunk_count, datasets=imatrix.datasets)
