"""`planner bench`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import gpu_option, threads_option
from planner.cli.progress import progress_bar
from planner.cli.running import check_runs
from planner.errors import UsageError
from planner.lastwords import note

if TYPE_CHECKING:
    from planner.llama.evaluate.bench import Speed
    from planner.report.evaluation import ModelSize

__all__ = ["bench"]


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-p",
    "--n-prompt",
    type=click.IntRange(min=0),
    default=512,
    show_default=True,
    help="Tokens of the prompt (pp); 0 leaves the test out.",
)
@click.option(
    "-n",
    "--n-gen",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    help="Tokens to generate (tg); 0 leaves the test out.",
)
@click.option(
    "-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of every test."
)
@threads_option
@gpu_option
@click.option("--json", "as_json", is_flag=True, help="Print the rates of every run as JSON.")
def bench(
    models: tuple[Path, ...], n_prompt: int, n_gen: int, repetitions: int, threads: int, gpu_layers: int, as_json: bool
) -> None:
    """Measure how fast models are: tokens per second of a prompt and of generation, as llama-bench does."""
    os.environ.setdefault("OMP_WAIT_POLICY", "active")  # as llama-bench runs; other commands let threads sleep
    from planner.llama.evaluate import bench as benching
    from planner.report.evaluation import model_size, speed_table

    if not n_prompt and not n_gen:
        raise UsageError("Both tests are left out.", "Give -p or -n a number of tokens.")
    check_runs(models, context=max(n_prompt, n_gen), gpu_layers=gpu_layers)
    rows: list[tuple[ModelSize, list[Speed]]] = []

    def results() -> str:
        return json.dumps(_facts(rows, threads), indent=2) if as_json else speed_table(rows)

    with progress_bar("runs") as advance:
        for path in models:
            size = model_size(path)
            speeds = benching.bench(
                path, prompt=n_prompt, generation=n_gen, repetitions=repetitions, threads=threads,
                gpu_layers=gpu_layers, progress=advance,
            )  # fmt: skip
            rows.append((size, speeds))
            note("result", results())
    click.echo(results())


def _facts(rows: Sequence[tuple[ModelSize, list[Speed]]], threads: int) -> list[dict[str, object]]:
    return [
        {
            "path": str(size.path), "bytes": size.bytes, "bpw": size.bpw, "threads": threads,
            "tests": [
                {"test": speed.test, "mean": speed.mean, "stddev": speed.deviation, "rates": speed.rates}
                for speed in speeds
            ],
        }
        for size, speeds in rows
    ]  # fmt: skip
