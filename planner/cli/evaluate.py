"""`planner evaluate`."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.messages import wrapped
from planner.cli.options import gpu_option, threads_option
from planner.cli.progress import progress_bar
from planner.cli.running import check_runs
from planner.errors import Interrupted, ModelError, UsageError
from planner.inputs.kinds import BASELINE
from planner.inputs.reading import kind_at
from planner.lastwords import note
from planner.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.llama.engine import Engine
    from planner.llama.evaluate.baseline import Baseline
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
@threads_option
@gpu_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, to full precision.")
def evaluate(
    base: Path, quants: tuple[Path, ...], text: Path | None, ctx: int | None, chunks: int | None,
    base_file: Path | None, multiple_choice: Path | None, hellaswag: Path | None, winogrande: Path | None,
    tasks: int | None, state: Path | None, threads: int, gpu_layers: int, as_json: bool,
) -> None:  # fmt: skip
    """Say how far QUANTs are from BASE: perplexity, KL divergence and flips on a text, and scores of tasks.

    BASE is the original model, or a file of its log-probabilities. Statistics are those of llama-perplexity
    --kl-divergence, and so are the files of log-probabilities. They are kept: the next comparison on the same text
    needs no run of BASE. Needs llama-cpp-python: pip install 'gguf-planner[llama]'.
    """
    run = _Run(base, quants, threads, gpu_layers, as_json=as_json)
    files: dict[Kind, Path | None] = {
        "multiple-choice": multiple_choice, "hellaswag": hellaswag, "winogrande": winogrande,
    }  # fmt: skip
    questions: dict[Kind, Path] = {kind: path for kind, path in files.items() if path is not None}
    run.check(text, {"--text": text, "--ctx": ctx, "--chunks": chunks, "--kl-divergence-base": base_file},
              questions, tasks)  # fmt: skip
    if state is not None and text is None and not run.base_is_file:
        raise UsageError("--calibrate goes with --text.", "Give a text, or leave it out.")
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


class _Run:
    """The files, and their results so far."""

    def __init__(self, base: Path, quants: Sequence[Path], threads: int, gpu_layers: int, *, as_json: bool) -> None:
        from planner.report.evaluation import Evaluated, model_size

        self.base_is_file = kind_at(base, ModelError) == BASELINE
        sizes = [None if self.base_is_file else model_size(base), *map(model_size, quants)]
        self.files = [Evaluated(size, str(path)) for size, path in zip(sizes, (base, *quants), strict=True)]
        self.base, self.quants = base, quants
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
        self, text: Path | None, about_text: Mapping[str, object], questions: Mapping[Kind, Path], tasks: int | None
    ) -> None:
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
        models = [file.size.path for file in self.files if file.size is not None]
        windows = text is not None or self.base_is_file
        check_runs(models, context=context if windows else 0, gpu_layers=self._gpu_layers)
        return context

    def text(
        self, text: Path | None, context: int, chunks: int | None, base_file: Path | None, state: Path | None
    ) -> None:
        """Find the original's perplexity, and every other file's divergence from it, which `state` remembers."""
        from planner.llama.evaluate.compare import base_nll, diverge
        from planner.llama.evaluate.statistics import perplexity, statistics
        from planner.llama.passes.calibrate import remember
        from state import Store

        with self._baseline(text, context, chunks, base_file) as baseline:
            self.context, self.windows = baseline.context, baseline.windows
            self.files[0].ppl = perplexity(base_nll(baseline))
            self._finish(1)
            for path, file in zip(self.quants, self.files[1:], strict=True):
                with self._engine(path, context=baseline.context) as engine, progress_bar("tokens") as advance:
                    found = diverge(engine, baseline, functools.partial(advance, path.name))
                file.statistics = statistics(found)
                file.ppl = file.statistics.ppl
                if state is not None and not math.isfinite(file.statistics.kld.value):
                    click.echo(f"{path}: an infinite divergence is not kept in {state}.", err=True)
                elif state is not None:
                    with Store.open(state) as store:
                        kept = remember(store, path, baseline, found.kld)
                    if not kept:
                        other = "its codes are rounded otherwise than those that were measured there"
                        click.echo(wrapped(plain(f"{path} is not kept in {state}: {other}.")), err=True)
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
