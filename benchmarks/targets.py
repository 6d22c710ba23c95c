"""`planner solve --kld X`: how often a file made for a divergence has one inside the interval that was predicted.

    python -m benchmarks.targets MODEL --imatrix F --calibration TEXT --evaluation TEXT [--values N] [--state F]

Passes run over the calibration text. For N divergences, evenly spread in their logarithm over those that recipes of 2.5
to 7 bits are expected to have, the smallest file is planned, written, and evaluated on the other text. Two in three are
to be inside; a file's own error of sampling is not in the interval. Needs the extra `llama`.
"""

from __future__ import annotations

import math
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import click
import numpy as np

from benchmarks.quality import divergence
from planner.api.quantize import quantize
from planner.cli import run
from planner.llama.engine import Engine, cut
from planner.llama.evaluate.baseline import record
from planner.llama.text import read_text
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.target import Target
from state import Store

RANGE = (Fraction(7), Fraction(5, 2))  # bits per weight


def spread(findings: Findings, count: int) -> list[float]:
    """Divergences to ask for, the smallest first."""
    ends = []
    for bpw in RANGE:
        prediction = make_plan(findings, PlanRequest(bpw=bpw)).prediction
        assert prediction is not None
        ends.append(prediction.kld)
    return [float(value) for value in np.geomspace(*ends, count)]


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--imatrix", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--evaluation", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--values", default=12, show_default=True)
@click.option("--state", type=click.Path(path_type=Path), help="State file to use and keep.")
@click.option("-c", "--ctx", default=256, show_default=True)
@click.option("--chunks", default=64, show_default=True)
@click.option("-t", "--threads", default=os.cpu_count() or 1)
def main(
    model: Path, imatrix: Path, calibration: Path, evaluation: Path, values: int, state: Path | None, ctx: int,
    chunks: int, threads: int,
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        state, out = state or Path(folder) / "targets.planner", Path(folder) / "file.gguf"
        arguments = ["--imatrix", str(imatrix), "--state", str(state), "-t", str(threads), "-c", str(ctx)]
        status = run(["sensitivity", str(model), "--text", str(calibration), *arguments])
        if status:
            raise SystemExit(status)
        with Store.open(state, read_only=True) as store:
            findings = Findings.read(store)
        with Engine(model, context=ctx, threads=threads) as engine:
            baseline = record(engine, cut(engine.tokenize(read_text(evaluation)), ctx, chunks))
        inside, ratios = 0, []
        click.echo(f"{'asked':>10} {'bytes':>13} {'bpw':>7} {'expected':>10} {'interval':>21} {'found':>10}")
        with baseline:
            for asked in spread(findings, values):
                plan = make_plan(findings, PlanRequest(target=Target(kld=asked)))
                quantize(model, plan.recipe, out, threads=threads, force=True)
                found, expected = divergence(out, baseline, threads), plan.prediction
                assert expected is not None
                hit = expected.low <= found <= expected.high
                inside += hit
                ratios.append(math.log(found / expected.kld))
                click.echo(
                    f"{asked:10.3g} {plan.recipe.size:13,} {plan.recipe.bpw:7.3f} {expected.kld:10.3g} "
                    f"{expected.low:10.3g} {expected.high:10.3g} {found:10.3g} {'inside' if hit else ''}"
                )
    mean, deviation = math.exp(float(np.mean(ratios))), float(np.std(ratios))
    click.echo(f"{inside} of {values} inside; found over expected: {mean:.2f}, standard deviation {deviation:.2f}")


if __name__ == "__main__":
    main()
