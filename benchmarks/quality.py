"""llama.cpp's own mixes and our recipes at the same bytes, by KL divergence on text that was used for nothing else.

    python -m benchmarks.quality MODEL --imatrix F --calibration TEXT --evaluation TEXT [--covariance F] [--csv F]

Mixes are written by `llama_model_quantize` in process. Sensitivities come from the imatrix alone (`structure`,
`uniform`, `prior`) and from passes over the calibration text (`measured`). `--state` keeps measurements and passes
for another time. With `--covariance`, a file that has the imatrix too, ours are measured and rounded against it; the
mixes are not. Needs the extra `llama`, and for the chart `report`.
"""

from __future__ import annotations

import csv
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.mixes import MIXES, write_mix
from planner.api.quantize import quantize
from planner.cli import run
from planner.errors import BudgetError
from planner.llama.engine import Engine, cut
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.compare import diverge
from planner.llama.text import read_text
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from state import Store

SOURCES = ("uniform", "prior", "structure", "measured")


def divergence(path: Path, baseline: Baseline, threads: int) -> float:
    """Mean KL divergence of a file from the original, nats per token."""
    with Engine(path, context=baseline.context, threads=threads) as engine:
        return float(diverge(engine, baseline).kld.mean(dtype=np.float64))


def ours(state: Path, model: Path, source: str, size: int, out: Path, threads: int) -> float | None:
    """Write our file of at most `size` bytes; returns the KL divergence that was predicted, if any."""
    with Store.open(state, read_only=True) as store:
        plan = make_plan(Findings.read(store), PlanRequest(budget=size, sensitivity=source))  # type: ignore[arg-type]
    quantize(model, plan.recipe, out, threads=threads, force=True)
    return plan.prediction.kld if plan.prediction else None


def table(rows: list[dict[str, Any]], sources: tuple[str, ...]) -> str:
    """Divergences of the mixes, ours as shares of them, and geometric means."""
    lines = [f"{'mix':8} {'bytes':>13} {'KLD':>9}  " + " ".join(f"{source:>10}" for source in sources) + "  predicted"]
    for row in rows:
        shares = " ".join(f"{row[source] / row['kld']:10.3f}" if row.get(source) else " " * 10 for source in sources)
        predicted = f"{row['predicted'] / row['measured']:10.2f}" if row.get("predicted") else ""
        lines.append(f"{row['mix']:8} {row['bytes']:13,} {row['kld']:9.6f}  {shares} {predicted}")
    means = []
    for source in sources:
        logs = [math.log(row[source] / row["kld"]) for row in rows if row.get(source)]
        means.append(f"{math.exp(sum(logs) / len(logs)):10.3f}" if logs else " " * 10)
    return "\n".join([*lines, f"{'geometric mean':32}  " + " ".join(means)])


def chart(rows: list[dict[str, Any]], sources: tuple[str, ...], name: str, path: Path) -> None:
    """KL divergence over size, as a page of its own."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure(layout={"title": name, "yaxis": {"type": "log", "title": "mean KLD, nats per token"}})
    figure.update_xaxes(title="MB")
    sizes = [row["bytes"] / 1e6 for row in rows]
    names = [row["mix"] for row in rows]
    figure.add_trace(Scatter(x=sizes, y=[row["kld"] for row in rows], name="llama.cpp's mixes", text=names,
                             mode="markers+text", textposition="top center"))  # fmt: skip
    for source in sources:
        figure.add_trace(Scatter(x=sizes, y=[row.get(source) for row in rows], name=source, mode="lines+markers"))
    figure.write_html(path)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--imatrix", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--covariance", type=click.Path(path_type=Path, exists=True), help="Refine ours against these.")
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--evaluation", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--mixes", default=",".join(MIXES), show_default=True)
@click.option("--sources", default=",".join(SOURCES), show_default=True)
@click.option("--state", type=click.Path(path_type=Path), help="State file to use and keep.")
@click.option("-c", "--ctx", default=256, show_default=True)
@click.option("--chunks", type=int)
@click.option("--passes", type=int, help="As `planner sensitivity --passes`.")
@click.option("-t", "--threads", default=os.cpu_count() or 1)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path))
@click.option(
    "--chart", "chart_file", type=click.Path(path_type=Path), help="Needs plotly: pip install -e .[benchmarks]."
)
def main(
    model: Path, imatrix: Path, covariance: Path | None, calibration: Path, evaluation: Path, mixes: str, sources: str,
    state: Path | None, ctx: int, chunks: int | None, passes: int | None, threads: int, csv_file: Path | None,
    chart_file: Path | None,
) -> None:  # fmt: skip
    chosen = tuple(sources.split(","))
    with tempfile.TemporaryDirectory() as folder:
        state = state or Path(folder) / "quality.planner"
        inputs = ["--imatrix", str(imatrix)] if covariance is None else ["--covariance", str(covariance)]
        arguments = [str(model), *inputs, "--state", str(state), "-t", str(threads)]
        measuring = ["sensitivity", *arguments, "--text", str(calibration), "-c", str(ctx)]
        status = run(
            [*measuring, *(["--passes", str(passes)] if passes else [])]
            if "measured" in chosen
            else ["measure", *arguments]
        )
        if status:
            raise SystemExit(status)
        out = Path(folder) / "file.gguf"
        with Engine(model, context=ctx, threads=threads) as engine:
            baseline = record(engine, cut(engine.tokenize(read_text(evaluation)), ctx, chunks))
        rows: list[dict[str, Any]] = []
        with baseline:
            for mix in mixes.split(","):
                write_mix(model, imatrix, mix, out, threads)
                size = out.stat().st_size
                row: dict[str, Any] = {"mix": mix, "bytes": size, "kld": divergence(out, baseline, threads)}
                for source in chosen:
                    try:
                        predicted = ours(state, model, source, size, out, threads)
                    except BudgetError as error:  # a mix may be above the largest or below the smallest of ours
                        click.echo(f"{mix}: {error.problem}", err=True)
                        continue
                    row[source] = divergence(out, baseline, threads)
                    row |= {"predicted": predicted} if predicted else {}
                rows.append(row)
                click.echo(f"{mix} done", err=True)
        click.echo(table(rows, chosen))
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["mix", "bytes", "kld", *chosen, "predicted"])
            writer.writeheader()
            writer.writerows(rows)
    if chart_file is not None:
        chart(rows, chosen, model.stem, chart_file)


if __name__ == "__main__":
    main()
