"""What recipes promise beside llama.cpp's mixes of their sizes, and what they get.

    python -m benchmarks.promises MODEL --imatrix F --state F --text TEXT [--mixes Q3_K_M,Q4_K_M] [--windows 8]

In the engine's memory, each mix and the recipe of its size are followed and evaluated on windows spread over a text.
`promised` is the ratio of their losses, `found` that of their KL divergences, with a standard error between windows:
divergences are made by few tokens, so that of three windows of 512 a ratio is good to a tenth at most. `nats` are the
divergences over the losses, which are in nats where the imatrix knows of reach or the state of passes. Recipes are for
a GPU, as activations are not rounded in memory. Needs the extra `llama`, and finished measurements in the state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.mixes import MIXES, mix_formats
from planner.gguf import open_model, read_imatrix
from planner.llama.evaluate.baseline import record
from planner.llama.evaluate.compare import diverge
from planner.llama.passes.kld import by_window
from planner.llama.passes.recipes import Followed, formats_to_follow, run_recipes
from planner.llama.passes.weights import open_weights
from planner.llama.text import spread_windows
from planner.plan.assess import assess
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from state import Store

__all__ = ["Promise", "promises"]

_SIZES = "Q2_K,IQ3_XXS,Q3_K_M,IQ4_XS,Q4_K_M,Q5_K_M,Q6_K"


@dataclass(frozen=True)
class Promise:
    """A mix's loss and divergence by window, f64[windows], and those of the recipe of its size."""

    mix: str
    loss: float
    found: NDArray[np.float64]
    our_loss: float
    our_found: NDArray[np.float64]

    @property
    def promised(self) -> float:
        return self.our_loss / self.loss

    @property
    def ratio(self) -> float:
        return float(self.our_found.mean() / self.found.mean())

    @property
    def stderr(self) -> float:
        """Of the ratio, to first order."""
        apart = self.our_found - self.ratio * self.found
        return float(apart.std(ddof=1) / math.sqrt(len(apart)) / self.found.mean())


def promises(model: Path, imatrix: Path, findings: Findings, sensitivity: str, mixes: list[str], text: Path, ctx: int,
             windows: int, threads: int) -> Iterator[Promise]:  # fmt: skip
    losses, matrix, recipes = findings.losses(sensitivity).where("gpu"), read_imatrix(imatrix), []
    for mix in mixes:
        theirs = assess(findings.inventory, mix_formats(model, imatrix, mix), losses, why="llama.cpp's mix").recipe
        request = PlanRequest(budget=theirs.size, sensitivity=sensitivity, run_on="gpu")
        recipes += [theirs, make_plan(findings, request).recipe]
    with (
        open_model(model) as opened,
        open_weights(model, opened, context=ctx, threads=threads, gpu_layers=0) as weights,
    ):
        (some,) = spread_windows(weights.engine, text, ctx, ctx * windows)
        followed = [Followed(each, "", matrix, None, formats_to_follow(opened, each, matrix)) for each in recipes]
        with record(weights.engine, some) as baseline:
            found = run_recipes(
                weights,
                followed,
                lambda engine, _: by_window(diverge(engine, baseline).kld, baseline).mean(axis=1),
                lambda _: nullcontext(lambda *_: None),
            )
            for mix, (theirs, ours) in zip(mixes, zip(recipes[::2], recipes[1::2], strict=True), strict=True):
                yield Promise(mix, theirs.loss, next(found), ours.loss, next(found))


HEADER = (
    f"{'mix':8} {'promised':>8} {'found':>7} {'+-':>6} {'found/promised':>15} {'KLD of mix':>11} {'nats: mix':>10} ours"
)


def row(entry: Promise) -> str:
    return (
        f"{entry.mix:8} {entry.promised:8.3f} {entry.ratio:7.3f} {entry.stderr:6.3f} "
        f"{entry.ratio / entry.promised:15.2f} {entry.found.mean():11.5f} {entry.found.mean() / entry.loss:10.2f} "
        f"{entry.our_found.mean() / entry.our_loss:.2f}"
    )


def mean_of(values: list[float]) -> float:
    return math.exp(float(np.mean(np.log(values))))


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--imatrix", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--mixes", default=_SIZES, show_default=True, help=f"Of {', '.join(MIXES)}.")
@click.option("--windows", default=8, show_default=True)
@click.option("-c", "--ctx", default=512, show_default=True)
@click.option("--sensitivity", default="structure", show_default=True)
@click.option("-t", "--threads", default=os.cpu_count() or 1)
def main(
    model: Path, imatrix: Path, state: Path, text: Path, mixes: str, windows: int, ctx: int, sensitivity: str,
    threads: int,
) -> None:  # fmt: skip
    with Store.open(state, read_only=True) as store:
        findings = Findings.read(store)
    click.echo(HEADER)
    entries = []
    for entry in promises(model, imatrix, findings, sensitivity, mixes.split(","), text, ctx, windows, threads):
        entries.append(entry)
        click.echo(row(entry))
    found, promised = (mean_of([getattr(entry, what) for entry in entries]) for what in ("ratio", "promised"))
    click.echo(f"geometric mean: promised {promised:.3f}, found {found:.3f}")


if __name__ == "__main__":
    main()
