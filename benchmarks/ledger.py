"""Where sensitivities are wrong: predicted and found divergence, role by role and by thirds of the depth.

    python -m benchmarks.ledger MODEL --imatrix F --state F --text TEXT [--mix Q4_K_M] [--csv F]

In the engine's memory, each part of the model alone is put into the types that llama.cpp's mix gives it; then all of
it, and from there part by part into those of our recipe of the same size. `predicted` is the sum of losses, times one
factor for all that makes it right for the whole mix; `found` the KL divergence (nats per token) from the unchanged
model, of a change with its paired standard error. Needs the extra `llama`, and finished measurements in the state.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.mixes import MIXES, mix_formats
from planner.formats.ggml import formats
from planner.gguf import open_model, read_imatrix
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.compare import diverge
from planner.llama.passes.kld import by_window, mean_kld
from planner.llama.passes.perturb import open_perturber
from planner.llama.text import spread_windows
from planner.names.gguf import role_of
from planner.plan.assess import assess
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from state import Store

Klds = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """One line: what was changed, from what, the loss of the change, and its divergence with its standard error."""

    part: str
    kind: str
    loss: float
    kld: float
    stderr: float


def parts_of(names: list[str]) -> dict[str, list[str]]:
    """Tensors by role and third of the depth; those outside the blocks alone."""
    last = max((role_of(name)[0] or 0 for name in names), default=0)
    groups: dict[str, list[str]] = {}
    for name in names:
        block, role = role_of(name)
        label = role if block is None else f"{role} {3 * block // (last + 1) + 1}/3"
        groups.setdefault(label, []).append(name)
    return groups


class Ledger:
    """The model in the engine's memory, and what it diverges by as it is changed."""

    def __init__(self, changer, baseline: Baseline, losses, mix: Mapping[str, str], ours: Mapping[str, str]):
        self.changer, self.baseline, self.losses, self.mix, self.ours = changer, baseline, losses, mix, ours
        self.at_rest = self.evaluate()

    def evaluate(self) -> Klds:
        return by_window(diverge(self.changer.engine, self.baseline).kld, self.baseline)

    def put(self, names: list[str], used: Mapping[str, str]) -> None:
        self.changer.change({name: formats()[used[name]] for name in names if name in self.changer.weights})

    def loss(self, names: list[str], used: Mapping[str, str]) -> float:
        return sum(self.losses.error_and_loss(name, used[name])[1] for name in names)

    def run(self) -> Iterator[Entry]:
        groups = parts_of(list(self.mix))
        for label, names in groups.items():
            self.put(names, self.mix)
            yield Entry(label, "alone", self.loss(names, self.mix), *mean_kld(self.evaluate() - self.at_rest))
            self.changer.restore(names)
        every = list(self.mix)
        self.put(every, self.mix)
        before = self.evaluate()
        yield Entry("the mix", "whole", self.loss(every, self.mix), *mean_kld(before - self.at_rest))
        for label, names in groups.items():
            self.put([name for name in names if self.ours[name] != self.mix[name]], self.ours)
            after = self.evaluate()
            change = self.loss(names, self.ours) - self.loss(names, self.mix)
            yield Entry(label, "exchanged", change, *mean_kld(after - before))
            before = after
        yield Entry("our recipe", "whole", self.loss(every, self.ours), *mean_kld(before - self.at_rest))


def show(entries: list[Entry]) -> str:
    whole = next(entry for entry in entries if entry.part == "the mix")
    factor = whole.kld / whole.loss
    lines = [f"{'part':16} {'':9} {'predicted':>10} {'found':>10} {'+-':>9}  found/predicted"]
    for entry in entries:
        expected = factor * entry.loss
        ratio = f"{entry.kld / expected:8.2f}" if expected else ""
        lines.append(f"{entry.part:16} {entry.kind:9} {expected:10.6f} {entry.kld:10.6f} {entry.stderr:9.6f}  {ratio}")
    ours = entries[-1]
    lines.append(f"ours over the mix: predicted {ours.loss / whole.loss:.2f}, found {ours.kld / whole.kld:.2f}")
    return "\n".join(lines)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--imatrix", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--mix", type=click.Choice(list(MIXES)), default="Q4_K_M", show_default=True)
@click.option("--tokens", default=4096, show_default=True)
@click.option("-c", "--ctx", default=512, show_default=True)
@click.option("--sensitivity", default="structure", show_default=True)
@click.option("-t", "--threads", default=os.cpu_count() or 1)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path))
def main(
    model: Path, imatrix: Path, state: Path, text: Path, mix: str, tokens: int, ctx: int, sensitivity: str,
    threads: int, csv_file: Path | None,
) -> None:  # fmt: skip
    with Store.open(state, read_only=True) as store:
        findings = Findings.read(store)
    losses = findings.losses(sensitivity)
    theirs = assess(findings.inventory, mix_formats(model, imatrix, mix), losses, why="llama.cpp's mix").recipe
    recipe = make_plan(findings, PlanRequest(budget=theirs.size, sensitivity=sensitivity)).recipe
    used = {choice.name: choice.format for choice in theirs.tensors if choice.loss}
    ours = {choice.name: choice.format for choice in recipe.tensors if choice.name in used}
    entries = []
    with (
        open_model(model) as opened,
        open_perturber(model, opened, read_imatrix(imatrix), context=ctx, threads=threads, gpu_layers=0) as changer,
    ):
        (windows,) = spread_windows(changer.engine, text, ctx, tokens)
        with record(changer.engine, windows) as baseline:
            for entry in Ledger(changer, baseline, losses, used, ours).run():
                entries.append(entry)
                click.echo(f"{entry.part} {entry.kind}: {entry.kld:.6f} ± {entry.stderr:.6f}", err=True)
    click.echo(show(entries))
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["part", "kind", "loss", "kld", "stderr"])
            writer.writerows(
                [vars(entry)[key] for key in ("part", "kind", "loss", "kld", "stderr")] for entry in entries
            )


if __name__ == "__main__":
    main()
