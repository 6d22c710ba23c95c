"""`planner quantize`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.messages import tell_unseen
from planner.cli.options import threads_option
from planner.cli.progress import progress_bar
from planner.errors import ImatrixError, Interrupted, RecipeError
from planner.text import plain

if TYPE_CHECKING:
    from planner.gguf import Imatrix, Model
    from planner.recipe import Recipe

__all__ = ["quantize"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--imatrix", type=click.Path(path_type=Path), help="Where the recipe's imatrix is now.  [default: where it was]"
)
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@click.option("--keep-split", is_flag=True, help="Write as many parts as MODEL has.")
@click.option("--max-shard-size", metavar="SIZE", help="Write parts OUT-00001-of-0000N.gguf of at most this size.")
@click.option("--allow-requantize", is_flag=True, help="Accept a model that is quantized already.")
@threads_option
def quantize(
    model: Path,
    recipe: Path,
    out: Path,
    imatrix: Path | None,
    force: bool,
    keep_split: bool,
    max_shard_size: str | None,
    allow_requantize: bool,
    threads: int,
) -> None:
    """Write OUT: MODEL with every tensor in the format that RECIPE gives it.

    Every tensor has the bytes that llama-quantize would write. OUT appears when it is complete, or not at all.
    """
    from planner.digests import recipe_digest
    from planner.formats.registry import family_named
    from planner.gguf import open_model
    from planner.gguf.provenance import provenance_pairs
    from planner.gguf.quantize import quantize_model
    from planner.recipe import load_recipe
    from planner.recipe.recount import recount
    from planner.sizes import format_size, parse_size

    given = load_recipe(recipe)
    dialect = family_named(given.family).exported_to
    if dialect is not None:
        raise RecipeError(
            f"{recipe} is planned for MLX: no GGUF can have its formats.",
            f"Export it: planner export RECIPE --to {dialect}. Or solve again without --family mlx.",
        )
    plan, changes = recount(given)
    for change in changes:
        click.echo(plain(f"Edited: {change}"), err=True)
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    with open_model(model) as opened:
        if opened.digest != plan.model.digest:
            raise RecipeError(
                f"{recipe} is for another model: {plan.model.name} ({plan.model.path}), not {model}.",
                "Give that model, or solve again for this one.",
            )
        matrix = _imatrix_of(plan, recipe, imatrix)
        if matrix is not None:
            tell_unseen(matrix, _quantized(plan, opened), written=True)
        try:
            with progress_bar("MB") as advance:
                written = quantize_model(
                    opened, plan.formats, matrix, out, file_type=plan.file_type,
                    extra=provenance_pairs(recipe_digest(plan.formats)), threads=threads, force=force,
                    keep_split=keep_split, max_shard_size=limit, allow_requantize=allow_requantize,
                    progress=lambda step: advance(step.tensor, step.done / 1e6, step.total / 1e6),
                )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted("Stopped. Nothing was written.", "The same command starts again.") from None
    for path in written.paths:
        click.echo(str(path))
    exact = "as promised" if written.bytes == given.size else f"the recipe promised {given.size:,} for one file"
    click.echo(f"{written.bytes:,} bytes ({format_size(written.bytes)}), {exact}")


def _imatrix_of(plan: Recipe, recipe: Path, given: Path | None) -> Imatrix | None:
    """The imatrix that a recipe was made with, from where it says or where it is now. Raises ImatrixError, and
    RecipeError for one that is given and was not used."""
    from planner.gguf import read_imatrix

    if plan.imatrix is None:
        if given is not None:
            raise RecipeError(f"{recipe} was made without an imatrix.", "Leave --imatrix out, or solve again with it.")
        return None
    path = given or Path(plan.imatrix.path)
    if not path.exists():
        raise ImatrixError(f"The recipe's imatrix {path} is not there.", "Say where it is with --imatrix.")
    matrix = read_imatrix(path)
    if matrix.digest != plan.imatrix.digest:
        raise ImatrixError(
            f"{path} is not the imatrix that the recipe was made with.", "Give that one, or solve again."
        )
    # the name in the metadata is the recipe's, wherever the file lies now: the size was promised with it
    return dataclasses.replace(matrix, given=plan.imatrix.path)


def _quantized(plan: Recipe, model: Model) -> list[str]:
    """The tensors that kernels make something else of."""
    from planner.formats.ggml import formats

    known, source = formats(), {tensor.name: tensor.format for tensor in model.tensors}
    return [
        name for name, fmt in plan.formats.items() if fmt in known and known[fmt].quantized and source.get(name) != fmt
    ]
