"""`planner sensitivity`."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import LiteralChoice, Measuring, gpu_option, measuring_options, open_sources
from planner.cli.progress import duration, progress_bar
from planner.cli.running import check_runs
from planner.errors import Interrupted, UsageError
from planner.terms import Design
from planner.text import command

if TYPE_CHECKING:
    from planner.cli.options import Sources
    from planner.llama.passes.trials import Trial, Trials
    from planner.plan.findings import Findings

__all__ = ["sensitivity"]

_AFFORDABLE = 512  # passes: with more tensors, blocks and roles are measured as wholes
_TOKENS, _FEW_TOKENS = 6144, 1024  # of a pass; of one that has to hurry


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--text", required=True, type=click.Path(path_type=Path), help="Text to run, such as the imatrix's.")
@click.option(
    "--design",
    type=LiteralChoice(Design),
    help=f"Every tensor alone, or blocks and roles as wholes.  [default: per-tensor up to {_AFFORDABLE} tensors]",
)
@click.option("--passes", type=click.IntRange(min=1), help="So many passes instead, where they tell most.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="As many passes as fit this time instead, those that tell most first.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help=f"Tokens of a pass, spread over the text.  [default: {_TOKENS}, with --minutes {_FEW_TOKENS}]",
)
@click.option(
    "--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="Run every pass on so many stretches."
)
@click.option(
    "-c", "--ctx", type=click.IntRange(min=4), help="Tokens of a window.  [default: 512, or what the model takes]"
)
@click.option(
    "--calibrate/--no-calibrate",
    default=None,
    help="Make and evaluate three files at the end, so that predicted divergences are in real units.  "
    "[default: yes, with --minutes no]",
)
@gpu_option
@measuring_options
def sensitivity(
    model: Path, text: Path, design: Design | None, passes: int | None, minutes: float | None, tokens: int | None,
    repeat: int, ctx: int | None, calibrate: bool | None, gpu_layers: int, measuring: Measuring,
) -> None:  # fmt: skip
    """Measure how much the predictions of MODEL suffer from errors of each of its tensors.

    A pass puts a tensor through a format in the memory of llama.cpp, runs a text, and takes the KL divergence from the
    unchanged model. Passes go to the state file as they are done: stop at any time, the same command goes on. `planner
    solve` then uses them, and says which divergence to expect. Needs llama-cpp-python: pip install
    'gguf-planner[llama]'.
    """
    from planner.cli.measure import run_campaign
    from planner.formats.ggml import select_formats
    from planner.llama.passes.perturb import open_perturber
    from planner.llama.passes.trials import Trials, plan_trials
    from planner.llama.text import spread_windows, window_length
    from planner.plan.findings import Findings

    if sum(choice is not None for choice in (design, passes, minutes)) > 1:
        raise UsageError("--design, --passes and --minutes exclude each other.", "Give one of them.")
    each = tokens or (_TOKENS if minutes is None else _FEW_TOKENS)
    calibrate = minutes is None if calibrate is None else calibrate
    with open_sources(model, measuring) as sources:
        context = ctx or window_length(sources.model)
        check_runs([model], context=context, gpu_layers=gpu_layers)
        run_campaign(sources, select_formats(measuring.types or "all"), {}, measuring)
        findings = Findings.read(sources.store)
        trials = plan_trials(findings, design, _AFFORDABLE if minutes else passes, affordable=_AFFORDABLE)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        threads = measuring.threads
        try:
            with contextlib.ExitStack() as kept:
                with open_perturber(
                    model, sources.model, sources.imatrix, refinement=sources.refinement, context=context,
                    threads=threads, gpu_layers=gpu_layers,
                ) as changer:  # fmt: skip
                    stretches = spread_windows(changer.engine, text, context, each, repeat)
                    runs = []
                    for number, windows in enumerate(stretches, start=1):
                        with progress_bar("tokens") as advance:
                            unchanged = functools.partial(advance, "the unchanged model")
                            run = kept.enter_context(Trials.start(sources.store, changer, windows, unchanged))
                        runs.append(run)
                        _run(run, trials, f"stretch {number} of {repeat}: " if repeat > 1 else "", deadline)
                if calibrate:  # the original is not in memory any more
                    _calibrate(sources, runs[0], threads, gpu_layers)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped. {len(sources.store.passes())} passes are saved in {sources.state}, and the model's weights "
                "were put back.",
                "The same command goes on from there.",
            ) from None
        click.echo(f"{len(sources.store.passes())} passes in {sources.state}.")
        _say_gain(Findings.read(sources.store))
        click.echo(f"Next: {command('planner', 'solve', '--state', sources.state, '--budget', 'SIZE')}")


def _run(run: Trials, trials: list[Trial], stretch: str, deadline: float | None) -> None:
    """Run the missing passes, or those that fit the time, after saying how long they will take."""
    missing = run.missing(trials)
    done = len(trials) - len(missing)
    if not missing:
        click.echo(f"{stretch}{done} passes were there already.", err=True)
        return
    before = f" {done} were there already." if done else ""
    seconds = run.seconds * len(missing)
    left = seconds if deadline is None else max(deadline - time.monotonic(), 0.0)
    how_many = f"{len(missing)} passes" if seconds <= left else "Passes"
    whole = duration(min(seconds, left))
    click.echo(f"{stretch}{how_many} of {run.seconds:.1f} s: about {whole}.{before}", err=True)
    with progress_bar("passes") as advance:
        for number, entry in enumerate(run.run(missing, deadline), start=1):
            advance(entry.label, number, len(missing))


def _say_gain(findings: Findings) -> None:
    """Say what passes are worth: how much less the recipes lose that they make, by what is now known."""
    from planner.plan.gain import gains_of_passes

    found = ", ".join(f"{100 * gain.saved:.0f} % at {gain.bpw:.2f} bpw" for gain in gains_of_passes(findings))
    if found:
        click.echo(f"By these sensitivities, recipes lose less than those made without passes: {found}.")


def _calibrate(sources: Sources, run: Trials, threads: int, gpu_layers: int) -> None:
    from planner.llama.passes.calibrate import calibrate, calibration_recipes
    from planner.plan.findings import Findings

    recipes = calibration_recipes(Findings.read(sources.store))
    click.echo("Making and evaluating " + ", ".join(f"{recipe.bpw:.2f}" for recipe in recipes) + " bpw.", err=True)
    with progress_bar("files") as advance:
        found = calibrate(
            sources.store, sources.model, sources.imatrix, sources.refinement, run.baseline, recipes, threads=threads,
            gpu_layers=gpu_layers,
        )  # fmt: skip
        for number, (entry, recipe) in enumerate(zip(found, recipes, strict=True), start=1):
            advance(entry.label, number, len(recipes))
            click.echo(f"{entry.label}: KLD {entry.kld:.4g} ± {entry.stderr:.2g}, losses sum to {recipe.loss:.4g}.")
