"""`planner evaluate`."""

from __future__ import annotations

import functools
import json
import math
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
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from planner.api.quants import Quants
    from planner.llama.engine import Engine
    from planner.llama.evaluate.baseline import Baseline
    from planner.llama.evaluate.divergence import Divergence
    from planner.llama.evaluate.taskfiles import Kind, Task
    from planner.report.evaluation import Evaluated

__all__ = ["evaluate"]

_paths = click.Path(path_type=Path)
_CONTEXT = 512


@click.command()
@click.argument("base", type=_paths)
@click.argument("quants", metavar="[QUANT]...", nargs=-1, type=_paths)
@click.option("--text", type=_paths, help="Text to predict, in UTF-8: none that calibrated the recipe.")
@click.option("-c", "--ctx", type=click.IntRange(min=3), help="Tokens of a window.  [default: 512, or what BASE takes]")
@click.option("--chunks", type=click.IntRange(min=1), help="Windows to take.  [default: all]")
@click.option(
    "--kl-divergence-base",
    "base_file",
    metavar="FILE",
    type=_paths,
    help="Where BASE's log-probabilities are kept.  [default: BASE's name, .kld, here]",
)
@click.option(
    "--multiple-choice", metavar="FILE", type=_paths, help="ARC, MMLU, TruthfulQA: binary, as llama-perplexity has it."
)
@click.option("--hellaswag", metavar="FILE", type=_paths, help="HellaSwag: six lines a task.")
@click.option("--winogrande", metavar="FILE", type=_paths, help="WinoGrande: CSV.")
@click.option("--tasks", type=click.IntRange(min=1), help="Tasks to take of each of these files.  [default: all]")
@click.option(
    "--calibrate", "state", metavar="STATE", type=_paths, help="Keep divergences in a state file, for its predictions."
)
@calibration_options
@threads_option
@gpu_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, to full precision.")
def evaluate(
    base: Path, quants: tuple[Path, ...], text: Path | None, ctx: int | None, chunks: int | None,
    base_file: Path | None, multiple_choice: Path | None, hellaswag: Path | None, winogrande: Path | None,
    tasks: int | None, state: Path | None, calibrated: Calibrated, threads: int, gpu_layers: int, as_json: bool,
) -> None:  # fmt: skip
    """Say how far QUANTs are from BASE: perplexity, KL divergence and flips on a text, and scores of tasks.

    QUANTs are GGUF files, and recipes, also for MLX, which are followed in memory. BASE is the original model, or a
    file of its log-probabilities. Statistics are those of llama-perplexity
    --kl-divergence, and so are the files of log-probabilities. They are kept: the next comparison on the same text
    needs no run of BASE. Needs llama-cpp-python: pip install 'gguf-planner[llama]'.
    """
    files: dict[Kind, Path | None] = {
        "multiple-choice": multiple_choice, "hellaswag": hellaswag, "winogrande": winogrande,
    }  # fmt: skip
    questions: dict[Kind, Path] = {kind: path for kind, path in files.items() if path is not None}
    with _opened(base, quants, calibrated) as compared:
        run = _Run(base, compared, threads, gpu_layers, as_json=as_json)
        run.check(text, {"--text": text, "--ctx": ctx, "--chunks": chunks, "--kl-divergence-base": base_file},
                  questions, tasks, state)  # fmt: skip
        context = run.ready(text, ctx)
        try:
            if text is not None or run.base_is_file:
                run.text(text, context, chunks, base_file, state)
            if questions:
                run.tasks(questions, tasks, 4 * (ctx or _CONTEXT))
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped. {run.finished} of {len(run.files)} files are evaluated.", run.hint) from None
        finally:  # whatever happened, what was found is shown
            if results := run.results():
                click.echo(results)


def _opened(base: Path, quants: Sequence[Path], calibrated: Calibrated) -> AbstractContextManager[Quants]:
    from planner.api.quants import Calibration, open_quants

    model = None if kind_at(base, ModelError) == BASELINE else base
    calibration = Calibration(calibrated.imatrix, calibrated.covariance, calibrated.shrinkage)
    return open_quants(model, quants, calibration, functools.partial(click.echo, err=True))


class _Run:
    """The files, and their results so far."""

    def __init__(self, base: Path, compared: Quants, threads: int, gpu_layers: int, *, as_json: bool) -> None:
        from planner.report.evaluation import Evaluated, model_size

        self.base_is_file = kind_at(base, ModelError) == BASELINE
        first = Evaluated(None if self.base_is_file else model_size(base), str(base))
        self.files = [first, *(quant.result for quant in compared.every)]
        self.base, self.compared = base, compared
        self.context: int | None = None
        self.windows: int | None = None
        self.finished, self.hint = 0, ""
        self._threads, self._gpu_layers, self._as_json = threads, gpu_layers, as_json

    def results(self) -> str:
        """Return the text to print of the files that are finished; empty where none is."""
        from planner.report.evaluation import evaluation_facts, evaluation_text

        done = [file for file in self.files if file.ppl or file.scores]
        if not done:
            return ""
        if self._as_json:
            facts = {"context": self.context, "windows": self.windows, "files": evaluation_facts(done)}
            return json.dumps(facts, indent=2)
        return evaluation_text(done, self.context, self.windows)

    def check(
        self, text: Path | None, about_text: Mapping[str, object], questions: Mapping[Kind, Path], tasks: int | None,
        state: Path | None,
    ) -> None:  # fmt: skip
        """Raise UsageError for options that do not go together."""
        if self.base_is_file:
            for option in ("--text", "--chunks", "--kl-divergence-base", *(() if questions else ("--ctx",))):
                if about_text[option] is not None:
                    raise UsageError(
                        f"{option} goes with a model, and {self.base} has the text in it.", "Leave it out."
                    )
        elif text is None:
            if not questions:
                raise UsageError("There is nothing to evaluate with.", "Give a text: --text FILE, or a file of tasks.")
            for option in ("--chunks", "--kl-divergence-base"):
                if about_text[option] is not None:
                    raise UsageError(f"{option} goes with --text.", "Give a text, or leave it out.")
        if tasks is not None and not questions:
            raise UsageError("--tasks goes with a file of tasks.", "Give one: --multiple-choice, --hellaswag, …")
        if state is not None and text is None and not self.base_is_file:
            raise UsageError("--calibrate goes with --text.", "Give a text, or leave it out.")
        recipe = next((file.name for file in self.files if file.in_memory), None)
        if recipe is not None and questions:
            raise UsageError(f"Tasks are scored on files, and {recipe} is a recipe.", "Write it: `planner quantize`.")
        if recipe is not None and state is not None:  # predictions are of files, whose activations are rounded too
            raise UsageError(
                f"--calibrate is for files, which predictions are of, and {recipe} is a recipe.",
                "Write it: `planner quantize`.",
            )

    def ready(self, text: Path | None, ctx: int | None) -> int:
        """Check all models before one runs; returns how many tokens a window has. Raises as `check_runs`."""
        from planner.gguf import open_model
        from planner.llama.evaluate.baseline import Baseline
        from planner.llama.text import window_length

        if self.base_is_file:
            with Baseline.open(self.base) as baseline:
                context = int(baseline.context)
        else:
            with open_model(self.base) as model:
                context = ctx or window_length(model)
        own = [] if self.base_is_file else [self.base]
        models = dict.fromkeys([*own, *self.compared.models])
        windows = text is not None or self.base_is_file
        check_runs(models, context=context if windows else 0, gpu_layers=self._gpu_layers)
        return context

    def text(
        self, text: Path | None, context: int, chunks: int | None, base_file: Path | None, state: Path | None
    ) -> None:
        """Find the original's perplexity, and every other file's divergence from it, which `state` remembers."""
        from planner.llama.evaluate.compare import base_nll
        from planner.llama.evaluate.statistics import perplexity, statistics

        with self._baseline(text, context, chunks, base_file) as baseline:
            self.context, self.windows = baseline.context, baseline.windows
            self.files[0].ppl = perplexity(base_nll(baseline))
            self._finish(1)
            for quant, found in self.compared.diverge(
                baseline, self.compared.every, threads=self._threads, gpu_layers=self._gpu_layers, bar=progress_bar
            ):
                quant.result.statistics = statistics(found)
                quant.result.ppl = quant.result.statistics.ppl
                if state is not None:
                    _remember(state, quant.result, baseline, found)
                self._finish(self.finished + 1)

    def tasks(self, files: Mapping[Kind, Path], count: int | None, context: int) -> None:
        """Score all models."""
        from planner.llama.evaluate.taskfiles import READERS, select

        chosen = {kind: select(kind, READERS[kind](path), count) for kind, path in files.items()}
        self.finished = 0
        for file in self.files:
            if file.size is not None:
                self._score(file, chosen, context)
            self._finish(self.finished + 1)

    def _finish(self, count: int) -> None:
        self.finished = count
        note("result", self.results())

    def _score(self, file: Evaluated, chosen: Mapping[Kind, Sequence[Task]], context: int) -> None:
        from planner.llama.branches import BranchedEngine
        from planner.llama.evaluate.tasks import branches_for, run_tasks

        assert file.size is not None
        branches = max(map(branches_for, chosen.values()))
        with BranchedEngine(
            file.size.path, context=max(context, branches), branches=branches, threads=self._threads,
            gpu_layers=self._gpu_layers,
        ) as engine:  # fmt: skip
            for kind, tasks in chosen.items():
                what = f"{file.size.path.name} {kind}"
                with progress_bar("tasks") as advance:
                    file.scores[kind] = run_tasks(engine, tasks, functools.partial(advance, what))
        if file is next(each for each in self.files if each.size is not None):
            longest = max(score.longest for score in file.scores.values())
            check_runs([file.size.path], context=longest, gpu_layers=0)

    def _baseline(self, text: Path | None, context: int, chunks: int | None, base_file: Path | None) -> Baseline:
        from planner.llama.evaluate.baseline import Baseline
        from planner.llama.evaluate.cache import BaselineRequest, obtain
        from planner.llama.text import read_text

        if text is None:
            return Baseline.open(self.base)
        path = base_file or Path(f"{self.base.name.removesuffix('.gguf')}.kld")
        request = BaselineRequest(self.base, read_text(text), context, chunks)
        engine = functools.partial(self._engine, context=context)
        with progress_bar("tokens") as advance:
            found, made = obtain(request, path, engine, functools.partial(advance, self.base.name))
        if made:
            click.echo(
                f"Log-probabilities of {self.base.name} are kept in {path} ({found.size / 1e6:,.1f} MB).", err=True
            )
        self.hint = f"The original's log-probabilities are kept in {path}."
        return found

    def _engine(self, path: Path, *, context: int) -> Engine:
        from planner.llama.engine import Engine

        return Engine(path, context=context, threads=self._threads, gpu_layers=self._gpu_layers)


def _remember(state: Path, file: Evaluated, baseline: Baseline, found: Divergence) -> None:
    """Keep a file's divergence in a state, and say so where that cannot be."""
    from planner.llama.passes.calibrate import remember
    from state import Store

    assert file.size is not None
    assert file.statistics is not None
    if not math.isfinite(file.statistics.kld.value):
        click.echo(f"{file.name}: an infinite divergence is not kept in {state}.", err=True)
        return
    with Store.open(state) as store:
        kept = remember(store, file.size.path, baseline, found.kld)
    if not kept:
        other = "its codes are rounded otherwise than those that were measured there"
        click.echo(wrapped(plain(f"{file.name} is not kept in {state}: {other}.")), err=True)
