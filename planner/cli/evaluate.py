"""`planner evaluate`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.evaluating import Reading, Run
from planner.cli.options import Calibrated, calibration_options, gpu_option, grouped, threads_option
from planner.errors import Interrupted, ModelError, UsageError
from planner.inputs.kinds import BASELINE
from planner.inputs.reading import kind_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from planner.api.quants import Quants
    from planner.report.evaluation import Evaluated

__all__ = ["evaluate"]

_paths = click.Path(path_type=Path)


class Asked(NamedTuple):
    """Files of tasks: values of `_task_options`."""

    multiple_choice: Path | None
    hellaswag: Path | None
    winogrande: Path | None
    mmlu: Path | None
    tasks: int | None

    @property
    def files(self) -> dict[str, Path]:
        """The files that there are, by their kinds."""
        every = {
            "multiple-choice": self.multiple_choice, "hellaswag": self.hellaswag, "winogrande": self.winogrande,
            "mmlu": self.mmlu,
        }  # fmt: skip
        return {kind: path for kind, path in every.items() if path is not None}


_reading_options = grouped(
    "reading",
    Reading,
    click.option(
        "--text", "texts", multiple=True, type=_paths,
        help="Text to predict, in UTF-8: none that calibrated the recipe. May be repeated, for a row of each.",
    ),
    click.option(
        "--chat", "chats", multiple=True, type=_paths, metavar="FILE",
        help='Conversations, of which answers are predicted: JSONL, {"messages": [...]} a line. May be repeated.',
    ),
    click.option(
        "-c", "--ctx", type=click.IntRange(min=3), help="Tokens of a window.  [default: 512, or what BASE takes]"
    ),
    click.option("--chunks", type=click.IntRange(min=1), help="Windows to take of each text.  [default: all]"),
    click.option(
        "--kl-divergence-base", "base_file", metavar="FILE", type=_paths,
        help="Where BASE's log-probabilities are kept.  [default: BASE's name, .kld, here]",
    ),
    click.option("--floor", is_flag=True, help="Evaluate BASE against itself, too: what is only numerical noise."),
    click.option(
        "--trajectories", type=click.IntRange(min=1), metavar="N",
        help="Divergence@32 of greedy trajectories after N prompts of each text.",
    ),
)  # fmt: skip
_task_options = grouped(
    "asked",
    Asked,
    click.option(
        "--multiple-choice", metavar="FILE", type=_paths,
        help="ARC, MMLU, TruthfulQA: binary, as llama-perplexity has it.",
    ),
    click.option("--hellaswag", metavar="FILE", type=_paths, help="HellaSwag: six lines a task."),
    click.option("--winogrande", metavar="FILE", type=_paths, help="WinoGrande: CSV."),
    click.option(
        "--mmlu", metavar="FOLDER", type=_paths, help="5-shot MMLU: CSV in dev and test, as its authors have it."
    ),
    click.option("--tasks", type=click.IntRange(min=1), help="Tasks to take of each of these files.  [default: all]"),
)  # fmt: skip


@click.command()
@click.argument("base", type=_paths)
@click.argument("quants", metavar="[QUANT]...", nargs=-1, type=_paths)
@_reading_options
@_task_options
@click.option(
    "--calibrate", "state", metavar="STATE", type=_paths, help="Keep divergences in a state file, for its predictions."
)
@calibration_options
@threads_option
@gpu_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, to full precision.")
def evaluate(
    base: Path, quants: tuple[Path, ...], reading: Reading, asked: Asked, state: Path | None, calibrated: Calibrated,
    threads: int, gpu_layers: int, as_json: bool,
) -> None:  # fmt: skip
    """Say how far QUANTs are from BASE: perplexity, KL divergence and flips on texts, and scores of tasks.

    QUANTs are GGUF files, and recipes, also for MLX, which are followed in memory. BASE is the original model, or a
    file of its log-probabilities. Statistics are those of llama-perplexity
    --kl-divergence, and so are the files of log-probabilities. They are kept: the next comparison on the same text
    needs no run of BASE. Needs llama-cpp-python: pip install 'gguf-planner[llama]'.
    """
    is_file = kind_at(base, ModelError) == BASELINE
    with _opened(None if is_file else base, quants, calibrated) as compared:
        _check(reading, asked, state, base if is_file else None, [quant.result for quant in compared.every])
        run = Run(base, compared, threads, gpu_layers, is_file=is_file, as_json=as_json)
        context = run.ready(reading)
        try:
            if reading.texts or reading.chats or is_file:
                run.read(reading, context, state)
            if asked.files:
                run.ask(asked.files, asked.tasks, reading.ctx)
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped. {run.finished} of {len(run.files)} files are evaluated.", run.hint) from None
        finally:  # whatever happened, what was found is shown
            if results := run.results():
                click.echo(results)


def _opened(base: Path | None, quants: Sequence[Path], calibrated: Calibrated) -> AbstractContextManager[Quants]:
    from planner.api.quants import Calibration, open_quants

    calibration = Calibration(calibrated.imatrix, calibrated.covariance, calibrated.shrinkage)
    return open_quants(base, quants, calibration, functools.partial(click.echo, err=True))


def _check(
    reading: Reading, asked: Asked, state: Path | None, base_file: Path | None, compared: Sequence[Evaluated]
) -> None:
    """Raise UsageError for options that do not go together; `base_file` is a BASE of log-probabilities."""
    of_text = {
        "--text": reading.texts or None, "--chat": reading.chats or None, "--chunks": reading.chunks,
        "--kl-divergence-base": reading.base_file, "--floor": reading.floor or None,
        "--trajectories": reading.trajectories,
    }  # fmt: skip
    given = [option for option, value in of_text.items() if value is not None]
    if base_file is not None:
        if reading.ctx is not None and not asked.files:
            given.append("--ctx")
        if given:
            raise UsageError(f"{given[0]} goes with a model, and {base_file} has the text in it.", "Leave it out.")
    elif not reading.texts and not reading.chats:
        if not asked.files:
            raise UsageError(
                "There is nothing to evaluate with.", "Give a text: --text FILE, or --chat FILE, or a file of tasks."
            )
        if given:
            raise UsageError(f"{given[0]} goes with --text or --chat.", "Give a text, or leave it out.")
    if asked.tasks is not None and not asked.files:
        raise UsageError("--tasks goes with a file of tasks.", "Give one: --multiple-choice, --hellaswag, …")
    if state is not None and base_file is None and (len(reading.texts) != 1 or reading.chats):
        raise UsageError("--calibrate goes with one --text.", "Give one text, or leave it out.")
    recipe = next((file.name for file in compared if file.in_memory), None)
    if recipe is not None and asked.files:
        raise UsageError(f"Tasks are scored on files, and {recipe} is a recipe.", "Write it: `planner quantize`.")
    if recipe is not None and state is not None:  # predictions are of files, whose activations are rounded too
        raise UsageError(
            f"--calibrate is for files, which predictions are of, and {recipe} is a recipe.",
            "Write it: `planner quantize`.",
        )
