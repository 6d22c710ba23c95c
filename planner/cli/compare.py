"""`planner compare`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.messages import wrapped
from planner.cli.options import Calibrated, calibration_options, gpu_option, threads_option
from planner.cli.progress import progress_bar
from planner.cli.running import check_runs
from planner.errors import Interrupted, ModelError, UsageError
from planner.inputs.kinds import BASELINE
from planner.inputs.reading import kind_at
from planner.lastwords import note
from planner.text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planner.api.compare import Comparing, Question
    from planner.api.quants import Quant, Quants
    from planner.llama.evaluate.baseline import Baseline
    from planner.llama.evaluate.results import Comparison
    from planner.plan.curve import Curve

__all__ = ["compare"]

_paths = click.Path(path_type=Path)


@click.command()
@click.argument("base", type=_paths)
@click.argument("quants", metavar="[QUANT]...", nargs=-1, type=_paths)
@click.option("--text", type=_paths, help="Text to predict, in UTF-8: none that calibrated any of them.")
@click.option("-c", "--ctx", type=click.IntRange(min=3), help="Tokens of a window.  [default: 512, or what BASE takes]")
@click.option("--chunks", type=click.IntRange(min=1), help="Windows to take.  [default: all]")
@click.option(
    "--kl-divergence-base", "base_file", metavar="FILE", type=_paths,
    help="Where BASE's log-probabilities are kept.  [default: BASE's name, .kld, here]",
)  # fmt: skip
@click.option(
    "--results", metavar="FILE", type=_paths, default="compare.json", show_default=True,
    help="Where results are kept: what is there is not evaluated again.",
)  # fmt: skip
@calibration_options
@click.option(
    "--state", metavar="FILE", type=_paths,
    help="Our curve beneath the files: what is predicted of our best of their sizes, by a state with passes.",
)  # fmt: skip
@click.option("--page", metavar="FILE", type=_paths, help="Write a page of HTML with a chart, too.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a table for spreadsheets.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, to full precision.")
@threads_option
@gpu_option
def compare(
    base: Path, quants: tuple[Path, ...], text: Path | None, ctx: int | None, chunks: int | None,
    base_file: Path | None, results: Path, calibrated: Calibrated, state: Path | None, page: Path | None, as_csv: bool,
    as_json: bool, threads: int, gpu_layers: int,
) -> None:  # fmt: skip
    """Compare many QUANTs of one model: GGUF files, of whoever made them, and recipes, also for MLX.

    The smallest comes first, and those on the frontier of size and divergence are named; where chance may explain a
    difference, it is a tie. Every result is kept as soon as it is there: the same command goes on where it was
    stopped, and with more QUANTs evaluates only these. Files that are gone stay in the table. BASE is the original,
    or a file of its log-probabilities. Needs llama-cpp-python: pip install 'gguf-planner[llama]'.
    """
    from planner.api.compare import Comparing, Question, curve_beneath
    from planner.api.quants import Calibration, open_quants

    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other.", "Give one of them.")
    is_file = kind_at(base, ModelError) == BASELINE
    _check(base, text, {"--text": text, "--ctx": ctx, "--chunks": chunks, "--kl-divergence-base": base_file}, is_file)
    calibration = Calibration(calibrated.imatrix, calibrated.covariance, calibrated.shrinkage)
    curve = None if state is None else curve_beneath(state, None if is_file else base)
    layout = functools.partial(_laid_out, curve=curve, as_csv=as_csv, as_json=as_json)
    question = Question.of(base, text, ctx, chunks)
    with open_quants(None if is_file else base, quants, calibration, functools.partial(click.echo, err=True)) as opened:
        comparing = Comparing(question, opened, results)
        missing = comparing.missing()
        try:
            if missing:
                _run(comparing, opened, missing, base_file, (threads, gpu_layers), layout)
        except KeyboardInterrupt:
            raise Interrupted("Stopped.", f"What is finished is kept in {results}: the same command goes on.") from None
        finally:
            if comparing.found is not None:
                click.echo(layout(comparing.found))
    if comparing.found is None:
        raise UsageError(
            f"There is nothing to compare: no QUANTs, and nothing of this text in {results}.", "Give files."
        )
    if page is not None:
        _write_page(comparing.found, curve, page)


def _check(base: Path, text: Path | None, about_text: dict[str, object], is_file: bool) -> None:
    """Raise UsageError for options that do not go together."""
    if not is_file and text is None:
        raise UsageError("There is nothing to compare by.", "Give a text: --text FILE.")
    given = [option for option, value in about_text.items() if value is not None]
    if is_file and given:
        raise UsageError(f"{given[0]} goes with a model, and {base} has the text in it.", "Leave it out.")


def _run(
    comparing: Comparing, opened: Quants, missing: Sequence[Quant], base_file: Path | None, how: tuple[int, int],
    layout: Callable[[Comparison], str],
) -> None:  # fmt: skip
    """Evaluate what is missing, and note after each what there is to show."""
    question, (threads, gpu_layers) = comparing.question, how
    own = [] if question.text is None else [question.original]
    kept = len(opened.every) - len(missing)
    if kept:
        click.echo(wrapped(plain(f"{kept} of {len(opened.every)} results are kept in {comparing.path}.")), err=True)
    check_runs(dict.fromkeys([*own, *opened.models]), context=question.context, gpu_layers=gpu_layers)
    with _baseline(question, base_file, threads, gpu_layers) as baseline:
        for _ in comparing.run(baseline, missing, threads=threads, gpu_layers=gpu_layers, bar=progress_bar):
            assert comparing.found is not None
            note("result", layout(comparing.found))


def _baseline(question: Question, base_file: Path | None, threads: int, gpu_layers: int) -> Baseline:
    from planner.llama.engine import Engine

    base = question.original
    path = base_file or Path(f"{base.name.removesuffix('.gguf')}.kld")
    engine = functools.partial(Engine, context=question.context, threads=threads, gpu_layers=gpu_layers)
    with progress_bar("tokens") as advance:
        found, made = question.baseline(path, engine, functools.partial(advance, base.name))
    if made:
        click.echo(f"Log-probabilities of {base.name} are kept in {path} ({found.size / 1e6:,.1f} MB).", err=True)
    return found


def _laid_out(comparison: Comparison, *, curve: Curve | None, as_csv: bool, as_json: bool) -> str:
    from planner.report.comparison import comparison_csv, comparison_facts, comparison_text

    if as_json:
        return json.dumps(comparison_facts(comparison, curve), indent=2)
    return comparison_csv(comparison, curve).rstrip("\n") if as_csv else comparison_text(comparison, curve)


def _write_page(comparison: Comparison, curve: Curve | None, path: Path) -> None:
    from planner.files import write_atomically
    from planner.report.comparison import comparison_page

    write_atomically(path, comparison_page(comparison, curve).encode())
    click.echo(f"Page       {path}", err=True)
