"""The run of `planner evaluate`: texts and chats, tasks, and what is printed of them so far."""

from __future__ import annotations

import functools
import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.messages import wrapped
from planner.cli.progress import progress_bar
from planner.cli.running import check_runs
from planner.errors import UsageError
from planner.lastwords import note
from planner.text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.api.evaluating import Domain, Found, How
    from planner.api.quants import Quants
    from planner.llama.branches import BranchedEngine
    from planner.llama.evaluate.tasks import Score
    from planner.report.evaluation import Evaluated

__all__ = ["Reading", "Run"]

_CONTEXT = 512
_ROOM = 4  # times as many tokens for tasks


class Reading(NamedTuple):
    """What is read, and how: values of options."""

    texts: tuple[Path, ...]
    chats: tuple[Path, ...]
    ctx: int | None
    chunks: int | None
    base_file: Path | None
    floor: bool
    trajectories: int | None


class Run:
    """The files, and their results so far; `is_file`: the original is a file of log-probabilities."""

    def __init__(
        self, base: Path, compared: Quants, threads: int, gpu_layers: int, *, is_file: bool, as_json: bool
    ) -> None:
        from planner.report.evaluation import Evaluated, model_size

        first = Evaluated(None if is_file else model_size(base), str(base))
        self.files = [first, *(quant.result for quant in compared.every)]
        self.finished, self.hint = 0, ""
        self._base, self._compared, self._is_file = base, compared, is_file
        self._threads, self._gpu_layers, self._as_json = threads, gpu_layers, as_json
        self._domains: list[Domain] = []
        self._floor: Evaluated | None = None

    def results(self) -> str:
        """Return the text to print of the files that are finished; empty where none is."""
        from planner.report.evaluation import Results, evaluation_facts
        from planner.report.results import results_text

        done = Results(self.files, [domain.facts for domain in self._domains], self._floor).finished
        if not done.files:
            return ""
        return json.dumps(evaluation_facts(done), indent=2) if self._as_json else results_text(done)

    def ready(self, reading: Reading) -> int:
        """Check all models before one runs; returns how many tokens a window has. Raises as `check_runs`."""
        from planner.api.evaluating import context_of
        from planner.llama.evaluate.answers import open_baseline

        if self._is_file:
            with open_baseline(self._base) as baseline:
                context = int(baseline.context)
        else:
            context = context_of(self._base, reading.ctx)
        own = [] if self._is_file else [self._base]
        windows = bool(reading.texts or reading.chats) or self._is_file
        models = dict.fromkeys([*own, *self._compared.models])
        check_runs(models, context=context if windows else 0, gpu_layers=self._gpu_layers)
        return context

    def read(self, reading: Reading, context: int, state: Path | None) -> None:
        """Find the original's perplexity, and every other file's divergence from it, which `state` remembers."""
        from planner.api.evaluating import How, evaluate_floor, evaluate_quants, fill_original

        how = How(self._threads, self._gpu_layers, progress_bar, functools.partial(click.echo, err=True))
        with ExitStack() as stack:
            domains = self._open(reading, context, how, stack)
            if state is not None and domains[0].chat:
                raise UsageError("--calibrate is for text, and not for conversations.", "Leave it out.")
            fill_original(self.files[0], domains)
            self._domains = domains
            self._finish(1)
            if reading.floor:
                self._floor = evaluate_floor(self._base, domains, how)
            for quant, found in evaluate_quants(self._compared, self._compared.every, domains, how):
                if state is not None:
                    _remember(state, quant.result, domains[0], found)
                self._finish(self.finished + 1)

    def _open(self, reading: Reading, context: int, how: How, stack: ExitStack) -> list[Domain]:
        from planner.api.evaluating import Domain, Source, open_domains
        from planner.llama.evaluate.answers import Answers, open_baseline

        if self._is_file:
            baseline = stack.enter_context(open_baseline(self._base))
            return [Domain(self._base.name, baseline, isinstance(baseline, Answers))]
        sources = [*map(Source, reading.texts), *(Source(path, chat=True) for path in reading.chats)]
        domains = []
        for domain in open_domains(
            self._base, sources, context, reading.chunks, reading.base_file, reading.trajectories or 0, how, stack
        ):
            domains.append(domain)
            if domain.made:
                baseline = domain.baseline
                size = f"{baseline.size / 1e6:,.1f} MB"
                click.echo(f"Log-probabilities of {self._base.name} are kept in {baseline.path} ({size}).", err=True)
            kept = ", ".join(str(each.baseline.path) for each in domains)
            self.hint = f"The original's log-probabilities are kept in {kept}."
        return domains

    def ask(self, files: Mapping[str, Path], count: int | None, ctx: int | None) -> None:
        """Score all models on tasks."""
        scorers = {kind: _scorer(kind, path, count) for kind, path in files.items()}
        self.finished = 0
        for file in self.files:
            if file.size is not None:
                self._score(file, scorers, _ROOM * (ctx or _CONTEXT))
            self._finish(self.finished + 1)

    def _finish(self, count: int) -> None:
        self.finished = count
        note("result", self.results())

    def _score(self, file: Evaluated, scorers: Mapping[str, _Scorer], context: int) -> None:
        from planner.llama.branches import BranchedEngine

        assert file.size is not None
        branches = max(scorer.branches for scorer in scorers.values())
        with BranchedEngine(
            file.size.path, context=max(context, branches), branches=branches, threads=self._threads,
            gpu_layers=self._gpu_layers,
        ) as engine:  # fmt: skip
            for kind, scorer in scorers.items():
                with progress_bar("tasks") as advance:
                    file.scores[kind] = scorer.run(engine, functools.partial(advance, f"{file.size.path.name} {kind}"))
        if file is next(each for each in self.files if each.size is not None):
            longest = max(score.longest for score in file.scores.values())
            check_runs([file.size.path], context=longest, gpu_layers=0)


class _Scorer:
    """Tasks that were read: in how many branches they run, and how."""

    def __init__(self, branches: int, run: Callable[[BranchedEngine, Callable[[int, int], None]], Score]) -> None:
        self.branches, self.run = branches, run


def _scorer(kind: str, path: Path, count: int | None) -> _Scorer:
    """Read the tasks of a file, and choose `count` of them. Raises BaselineError."""
    from planner.llama.evaluate.mmlu import read_mmlu, run_mmlu
    from planner.llama.evaluate.prompts import BRANCHES
    from planner.llama.evaluate.taskfiles import READERS, select
    from planner.llama.evaluate.tasks import branches_for, run_tasks

    if kind == "mmlu":
        questions = sorted(select("multiple-choice", read_mmlu(path), count), key=lambda each: each.subject)
        return _Scorer(BRANCHES, lambda engine, progress: run_mmlu(engine, questions, progress))
    known = next(each for each in READERS if each == kind)
    tasks = select(known, READERS[known](path), count)
    return _Scorer(branches_for(tasks), lambda engine, progress: run_tasks(engine, tasks, progress))


def _remember(state: Path, file: Evaluated, domain: Domain, found: Found) -> None:
    """Keep a file's divergence in a state, and say so where that cannot be."""
    from planner.llama.passes.calibrate import remember
    from state import Store

    assert file.size is not None
    assert file.statistics is not None
    if not math.isfinite(file.statistics.kld.value):
        click.echo(f"{file.name}: an infinite divergence is not kept in {state}.", err=True)
        return
    with Store.open(state) as store:
        kept = remember(store, file.size.path, domain.baseline, found.divergences[0].kld)
    if not kept:
        other = "its codes are rounded otherwise than those that were measured there"
        click.echo(wrapped(plain(f"{file.name} is not kept in {state}: {other}.")), err=True)
