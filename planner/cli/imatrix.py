"""`planner imatrix`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from planner.cli.options import LiteralChoice, gpu_option, threads_option
from planner.cli.progress import duration, progress_bar
from planner.cli.running import check_runs
from planner.errors import ImatrixError, InferenceError, Interrupted, UsageError
from planner.text import command

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.gguf import Imatrix, Model
    from planner.gguf.covariance import Covariances
    from planner.gguf.reach import Reach
    from planner.gguf.sums import Sums
    from planner.llama.collect.run import CollectRequest, Gathering

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
@click.option(
    "--covariance",
    type=_paths,
    help="Write covariances too, for rounding against them; merged files then have to have them.",
)
@click.option("--memory", help="Memory for covariances; what does not fit takes more passes.  [default: most of it]")
@click.option(
    "--process-output/--no-process-output",
    default=True,
    show_default=True,
    help="Collect for what makes the logits too: output.weight, or a tied token_embd.",
)
@click.option(
    "--reach/--no-reach",
    default=True,
    show_default=True,
    help="Find out how far noise reaches from each depth: short passes, for better recipes.",
)
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
    covariance: Path | None,
    memory: str | None,
    process_output: bool,
    reach: bool,
    parse_special: bool,
    gpu_layers: int,
    threads: int,
    force: bool,
) -> None:  # fmt: skip
    """Make an importance matrix: let MODEL read text, and add up what goes into its weights.

    Per channel, sums of squares (as llama-imatrix has them) and of activations; per expert, how often it was used. Stop
    at any time, the same command goes on. Needs llama-cpp-python: pip install 'gguf-planner[llama]'.
    """
    from planner.gguf import open_model, read_imatrix
    from planner.gguf.covariance import Covariances
    from planner.llama.collect.run import CollectRequest
    from planner.llama.text import window_length
    from planner.sizes import parse_size

    reading = bool(texts or chats)
    _check_usage(model, reading=reading, merging=bool(merged), covariance=covariance, memory=memory)
    files = _Files(
        output, output_format, covariance, [path for path in (model, *texts, *chats, *merged) if path], force
    )
    files.check()
    with contextlib.ExitStack() as stack:
        correlated = [stack.enter_context(Covariances.open(path)) for path in merged] if covariance else []
        earlier = [file.imatrix for file in correlated] or [read_imatrix(path) for path in merged]
        opened = None if model is None else stack.enter_context(open_model(model))
        if opened is not None:
            for file in earlier:
                _check_model(file, opened)
        if opened is None or not reading:
            _merge(files, earlier, correlated, opened, ctx)
            return
        request = CollectRequest(
            opened, texts, chats, tuple(earlier), output, context=ctx or window_length(opened), chunks=chunks,
            output=process_output, parse_special=parse_special, gpu_layers=gpu_layers,
            threads=threads, force=force, covariance=covariance, correlated=tuple(correlated),
            memory=None if memory is None else parse_size(memory),
        )  # fmt: skip
        _read(request, files, reach=reach and output_format != "dat")


@dataclass
class _Files:
    """What is written, and what was read for it: `inputs` are not to be overwritten."""

    imatrix: Path
    encoding: Encoding
    covariance: Path | None
    inputs: list[Path]
    force: bool

    def check(self) -> None:
        """Refuse names that cannot be written to. Raises OutputError and UsageError."""
        from planner.files import check_destinations

        for path in (self.imatrix, self.covariance):
            if path is not None:
                check_destinations([path], 0, self.inputs, force=self.force)
        if self.covariance is not None and self.covariance.absolute() == self.imatrix.absolute():
            raise UsageError(
                f"{self.imatrix} cannot be both files.", "Give another name with --covariance or --output."
            )


def _check_usage(
    model: Path | None, *, reading: bool, merging: bool, covariance: Path | None, memory: str | None
) -> None:
    if not reading and not merging:
        raise UsageError(
            "There is nothing to read.",
            "Give text with --text FILE or --chat FILE.jsonl, or an imatrix to merge or convert with --merge FILE.",
        )
    if reading and model is None:
        raise UsageError("Which model is to read the text?", "planner imatrix MODEL --text FILE")
    if memory is not None and not (covariance and reading):
        raise UsageError("--memory goes with --covariance and a text.", "Leave it out, or give --covariance FILE.")


def _check_model(file: Imatrix, model: Model) -> None:
    unused = file.require(model).unused
    if unused:
        raise ImatrixError(
            f"{file.path}: the imatrix of another model: {model.path.name} has no {unused[0]}.",
            "Merge only importance matrices of this model.",
        )


def _read(request: CollectRequest, files: _Files, *, reach: bool) -> None:
    from planner.llama.collect.run import Gathering

    files.inputs += request.model.parts
    check_runs([request.model.path], context=request.context, gpu_layers=request.gpu_layers, predicts=False)
    gathering = None
    try:
        with Gathering(request) as gathering, progress_bar("chunks") as advance:
            _announce(gathering, request)
            if gathering.done:
                click.echo(f"Going on after {gathering.done:,} of {gathering.total:,} chunks.", err=True)
            for done in gathering.run():
                advance("reading", done, gathering.total)
            if reach:
                _sound(gathering, request, advance)
            _finish(gathering.sums, request.model, files, gathering)
            gathering.forget()
    except KeyboardInterrupt:
        if gathering is None or not gathering.saved:
            raise Interrupted("Stopped. Nothing was saved yet.", "The same command begins anew.") from None
        raise Interrupted(
            f"Stopped. {gathering.saved:,} of {gathering.total:,} chunks are saved in {gathering.progress}.",
            "The same command goes on from there.",
        ) from None


def _sound(gathering: Gathering, request: CollectRequest, advance: Callable[[str, int, int], None]) -> None:
    """Find out how far noise reaches; where the model does not stand it, say so, as the rest is of use without."""
    from planner.llama.passes.reach import sound

    gathering.free_model()
    found: dict[str, Reach] = {}
    try:
        for done, total in sound(
            request.model, gathering.windows, found, threads=request.threads, gpu_layers=request.gpu_layers
        ):
            advance("listening to noise", done, total)
    except InferenceError as problem:
        click.echo(f"How far noise reaches is not known: {problem}", err=True)
    gathering.sums.add_reach(found)


def _announce(gathering: Gathering, request: CollectRequest) -> None:
    """Say what covariances will take, before the texts are read."""
    from planner.sizes import format_size

    expected = gathering.expected()
    if expected is None or request.covariance is None:
        return
    passes = "one pass" if expected.passes == 1 else f"{expected.passes:,} passes"
    click.echo(
        f"Covariances: {format_size(expected.file_bytes)} in {request.covariance}, {format_size(expected.memory)} of "
        f"memory, {passes} over {expected.tokens:,} tokens: about {duration(expected.seconds)}.",
        err=True,
    )
    if expected.tokens < expected.widest:
        click.echo(
            f"Fewer tokens than channels ({expected.widest:,}): give more text, ten tokens a channel if there are.",
            err=True,
        )
    if not gathering.keeps:
        click.echo(
            "The disk has no room for twice that memory: progress is kept only at the end of a pass.",
            err=True,
        )


def _merge(
    files: _Files, earlier: list[Imatrix], correlated: list[Covariances], model: Model | None, ctx: int | None
) -> None:
    from planner.gguf.covariance_writer import merge_covariances
    from planner.gguf.sums import merge_imatrices

    if model is not None:
        files.inputs += model.parts
    sums = merge_imatrices(earlier, ctx)
    if files.covariance is not None:
        merge_covariances(correlated, sums, files.covariance)
    _finish(sums, model, files, None)


def _finish(sums: Sums, model: Model | None, files: _Files, gathering: Gathering | None) -> None:
    """Write the files, show what is in them, and what to do with them."""
    from planner.gguf import read_imatrix
    from planner.gguf.imatrix_writer import write_imatrix, write_legacy_imatrix
    from planner.report.inspection import imatrix_facts, imatrix_summary

    write = write_legacy_imatrix if files.encoding == "dat" else write_imatrix
    write(sums, files.imatrix, force=files.force, inputs=files.inputs)
    if gathering is not None and files.covariance is not None:
        gathering.finish_covariances()
    click.echo(imatrix_summary(imatrix_facts(read_imatrix(files.imatrix), model)))
    if files.encoding != "dat" and 0 < len(sums.without_sums) < len(sums.tensors):
        click.echo(
            f"{len(sums.without_sums):,} entries have no sums of activations: a file that was merged has none.",
            err=True,
        )
    if model is not None:
        click.echo(f"\nNext: {command('planner', 'measure', model.path, '--imatrix', files.imatrix)}")
