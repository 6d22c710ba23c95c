"""`planner quantize`."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from planner.cli.options import scheduler_option, shrinkage_option, threads_option
from planner.cli.progress import progress_bar
from planner.errors import Interrupted

__all__ = ["quantize"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--imatrix", type=click.Path(path_type=Path), help="Where the recipe's imatrix is now.  [default: where it was]"
)
@click.option(
    "--covariance",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Refine codes against these covariances: the same bytes, and less divergence.",
)
@shrinkage_option
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Refine codes along the depth: for what the rounded blocks before them make of this text.",
)
@click.option("--chunks", type=click.IntRange(min=1), help="Read at most so many chunks of each text.")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@click.option("--keep-split", is_flag=True, help="Write as many parts as MODEL has.")
@click.option("--max-shard-size", metavar="SIZE", help="Write parts OUT-00001-of-0000N.gguf of at most this size.")
@click.option("--allow-requantize", is_flag=True, help="Accept a model that is quantized already.")
@threads_option
@scheduler_option
def quantize(
    model: Path,
    recipe: Path,
    out: Path,
    imatrix: Path | None,
    covariance: Path | None,
    shrinkage: float | None,
    texts: tuple[Path, ...],
    chunks: int | None,
    force: bool,
    keep_split: bool,
    max_shard_size: str | None,
    allow_requantize: bool,
    threads: int,
    scheduler: str | None,
) -> None:
    """Write OUT: MODEL with every tensor in the format that RECIPE gives it.

    Every tensor has the bytes that llama-quantize would write. With --covariance, a file that `planner imatrix
    --covariance` makes, codes are refined: other bytes, as many of them, that any llama.cpp reads. With --text they are
    refined best, block by block, for what the rounded blocks before them make of it: some six readings of the text. OUT
    appears when it is complete, or not at all; refining against covariances goes on where it was stopped.
    """
    from planner.api.quantize import quantize as write_quantized
    from planner.sizes import format_size

    try:
        with progress_bar("blocks") as read, progress_bar("MB") as advance:
            written = write_quantized(
                model, recipe, out, imatrix=imatrix, covariance=covariance, shrinkage=shrinkage, text=texts,
                chunks=chunks, reading=read, force=force,
                keep_split=keep_split, max_shard_size=max_shard_size, allow_requantize=allow_requantize,
                threads=threads, scheduler=scheduler, note=functools.partial(click.echo, err=True),
                progress=lambda tensor, done, total: advance(tensor, done / 1e6, total / 1e6),
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        kept = ", ".join(getattr(stop, "__notes__", ()))
        if kept:
            raise Interrupted(f"Stopped. What is refined is kept in {kept}.", "The same command goes on.") from None
        raise Interrupted("Stopped. Nothing was written.", "The same command starts again.") from None
    for path in written.paths:
        click.echo(str(path))
    promised = f"the recipe promised {written.promised:,} for one file"
    exact = "as promised" if written.bytes == written.promised else promised
    click.echo(f"{written.bytes:,} bytes ({format_size(written.bytes)}), {exact}")
