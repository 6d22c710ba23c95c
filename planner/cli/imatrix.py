"""`planner imatrix`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from planner.cli.options import LiteralChoice, gpu_option, threads_option
from planner.cli.progress import progress_bar
from planner.cli.running import check_runs
from planner.errors import ImatrixError, Interrupted, UsageError
from planner.text import command

if TYPE_CHECKING:
    from planner.gguf import Imatrix, Model
    from planner.gguf.sums import Sums
    from planner.llama.collect.run import CollectRequest

__all__ = ["imatrix"]

Encoding = Literal["gguf", "dat"]

_paths = click.Path(path_type=Path)


@click.command()
@click.argument("model", required=False, type=_paths)
@click.option("--text", "texts", multiple=True, type=_paths, help="Plain text to read. May be repeated.")
@click.option(
    "--chat",
    "chats",
    multiple=True,
    type=_paths,
    help='Conversations to read, rendered with the model\'s chat template: JSONL, {"messages": [...]} a line.',
)
@click.option(
    "--merge",
    "merged",
    multiple=True,
    type=_paths,
    help="Add an imatrix that exists, GGUF or legacy .dat. Without --text and --chat: merge or convert.",
)
@click.option("-o", "--output", type=_paths, default=Path("imatrix.gguf"), show_default=True)
@click.option(
    "--output-format",
    type=LiteralChoice(Encoding),
    default="gguf",
    show_default=True,
    help="dat: the legacy format, without sums of activations.",
)
@click.option(
    "-c", "--ctx", type=click.IntRange(min=16), help="Tokens of a chunk.  [default: 512, or what the model takes]"
)
@click.option("--chunks", type=click.IntRange(min=1), help="Read at most so many chunks of each text.")
@click.option("--process-output", is_flag=True, help="Collect for output.weight too.")
@click.option("--parse-special", is_flag=True, help="Take <|im_start|> and its like in --text for special tokens.")
@gpu_option
@threads_option
@click.option("-f", "--force", is_flag=True, help="Overwrite the output, and the progress of another run.")
def imatrix(
    model: Path | None,
    texts: tuple[Path, ...],
    chats: tuple[Path, ...],
    merged: tuple[Path, ...],
    output: Path,
    output_format: Encoding,
    ctx: int | None,
    chunks: int | None,
    process_output: bool,
    parse_special: bool,
    gpu_layers: int,
    threads: int,
    force: bool,
) -> None:  # fmt: skip
    """Make an importance matrix: let MODEL read text, and add up what goes into its weights.

    Per channel, sums of squares (as llama-imatrix has them) and of activations; per expert, how often it was used. Stop
    at any time, the same command goes on. Needs llama-cpp-python: pip install 'gguf-planner[llama]'.
    """
    from planner.files import check_destinations
    from planner.gguf import open_model, read_imatrix
    from planner.llama.collect.run import CollectRequest
    from planner.llama.text import window_length

    reading = bool(texts or chats)
    _check_usage(model, reading=reading, merging=bool(merged))
    inputs = [path for path in (model, *texts, *chats, *merged) if path is not None]
    check_destinations([output], 0, inputs, force=force)
    earlier = [read_imatrix(path) for path in merged]
    if model is None:
        _finish(_merge(earlier, ctx), None, output, output_format, inputs, force=force)
        return
    with open_model(model) as opened:
        for file in earlier:
            _check_model(file, opened)
        if not reading:
            sums = _merge(earlier, ctx)
            _finish(sums, opened, output, output_format, [*inputs, *opened.parts], force=force)
            return
        request = CollectRequest(
            opened, texts, chats, tuple(earlier), output, context=ctx or window_length(opened), chunks=chunks,
            output=process_output, parse_special=parse_special, gpu_layers=gpu_layers, threads=threads, force=force,
        )  # fmt: skip
        _read(request, output_format, [*inputs, *opened.parts])


def _check_usage(model: Path | None, *, reading: bool, merging: bool) -> None:
    if not reading and not merging:
        raise UsageError(
            "There is nothing to read.",
            "Give text with --text FILE or --chat FILE.jsonl, or an imatrix to merge or convert with --merge FILE.",
        )
    if reading and model is None:
        raise UsageError("Which model is to read the text?", "planner imatrix MODEL --text FILE")


def _check_model(file: Imatrix, model: Model) -> None:
    unused = file.require(model).unused
    if unused:
        raise ImatrixError(
            f"{file.path}: the imatrix of another model: {model.path.name} has no {unused[0]}.",
            "Merge only importance matrices of this model.",
        )


def _read(request: CollectRequest, output_format: Encoding, inputs: list[Path]) -> None:
    from planner.llama.collect.run import Gathering

    check_runs([request.model.path], context=request.context, gpu_layers=request.gpu_layers, predicts=False)
    gathering = None
    try:
        with Gathering(request) as gathering, progress_bar("chunks") as advance:
            if gathering.done:
                click.echo(f"Going on after {gathering.done:,} of {gathering.total:,} chunks.", err=True)
            for done in gathering.run():
                advance("reading", done, gathering.total)
            _finish(gathering.sums, request.model, request.destination, output_format, inputs, force=request.force)
            gathering.forget()
    except KeyboardInterrupt:
        if gathering is None or not gathering.saved:
            raise Interrupted("Stopped. Nothing was saved yet.", "The same command begins anew.") from None
        raise Interrupted(
            f"Stopped. {gathering.saved:,} of {gathering.total:,} chunks are saved in {gathering.progress}.",
            "The same command goes on from there.",
        ) from None


def _merge(files: list[Imatrix], ctx: int | None) -> Sums:
    from planner.gguf.sums import merge_imatrices

    return merge_imatrices(files, ctx)


def _finish(
    sums: Sums, model: Model | None, output: Path, output_format: Encoding, inputs: list[Path], *, force: bool
) -> None:
    """Write the file, show what is in it, and what to do with it."""
    from planner.gguf import read_imatrix
    from planner.gguf.imatrix_writer import write_imatrix, write_legacy_imatrix
    from planner.report.inspection import imatrix_facts, imatrix_summary

    write = write_legacy_imatrix if output_format == "dat" else write_imatrix
    write(sums, output, force=force, inputs=inputs)
    click.echo(imatrix_summary(imatrix_facts(read_imatrix(output), model)))
    if output_format != "dat" and 0 < len(sums.without_sums) < len(sums.tensors):
        click.echo(
            f"{len(sums.without_sums):,} entries have no sums of activations: a file that was merged has none.",
            err=True,
        )
    if model is not None:
        click.echo(f"\nNext: {command('planner', 'measure', model.path, '--imatrix', output)}")
