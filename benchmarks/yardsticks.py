"""Published tables, and our files of the same sizes: `python -m benchmarks.yardsticks TABLE MODEL --text FILE …`.

TABLE is a CSV with a row a file: its name, `bytes`, the `kld` that somebody published, and, where it is one, the `mix`
of llama.cpp. Each mix is made and evaluated again: only if that gives what was published are text, context and model
the same, and other figures comparable. Ours are planned for at most these bytes, written, and evaluated as files.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

import planner
from planner.llama.evaluate.statistics import Estimate
from planner.plan.findings import Findings
from planner.plan.target import Other, assess_other
from planner.recipe import Recipe

__all__ = ["TABLES", "Published", "Row", "measured_against", "read_published", "table"]

TABLES = Path(__file__).parent / "data/yardsticks"


@dataclass(frozen=True, slots=True)
class Published:
    """A file as somebody describes it: bytes, mean KL divergence (nats per token), llama.cpp's mix if it is one."""

    file: str
    bytes: int
    kld: float
    mix: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A published file beside the same mix made again, None where it is none of llama.cpp's, and ours."""

    published: Published
    again: Estimate | None
    bytes: int
    ours: Estimate

    @property
    def share(self) -> float:
        """Ours as a multiple of the same mix here, or else of what was published."""
        return self.ours.value / (self.published.kld if self.again is None else self.again.value)


def read_published(path: Path) -> list[Published]:
    """Read a table: a CSV, or the name of one of `TABLES`."""
    with (path if path.exists() else TABLES / f"{path}.csv").open(newline="", encoding="utf-8") as file:
        return [
            Published(row["file"], int(row["bytes"]), float(row["kld"]), row["mix"] or None)
            for row in csv.DictReader(file)
        ]


@dataclass(frozen=True)
class _Bench:
    """Makes files of a model, one at a time, and evaluates them on a text."""

    model: Path
    text: Path
    ctx: int | None
    chunks: int | None
    threads: int | None
    folder: Path

    def divergence(self, recipe: Recipe) -> tuple[int, Estimate]:
        """Return the bytes of the recipe's file, and its mean KL divergence."""
        out = self.folder / "file.gguf"
        size = planner.quantize(self.model, recipe, out, threads=self.threads, force=True).bytes
        found = planner.evaluate(
            self.model, out, text=self.text, ctx=self.ctx, chunks=self.chunks, threads=self.threads,
            kl_divergence_base=self.folder / "original.kld",
        )  # fmt: skip
        out.unlink()
        return size, found.quants[0].statistics.kld


def measured_against(
    published: list[Published], state: Path, bench: _Bench, *, types: str | None = None
) -> Iterator[Row]:
    """Yield a row a published file; the model is measured in the `state`."""
    with planner.open_state(state, read_only=True) as opened:
        findings = Findings.read(opened.store)
        losses = findings.losses()
        for entry in published:
            again = None
            if entry.mix is not None:
                _, again = bench.divergence(assess_other(Other(entry.mix), findings, losses).recipe)
            size, ours = bench.divergence(opened.solve(budget=entry.bytes, types=types).recipe)
            yield Row(entry, again, size, ours)


def table(rows: list[Row]) -> str:
    """Return the rows at 80 columns."""
    width = max(len(row.published.file) for row in rows)
    lines = [f"{'file':{width}} {'theirs':>7} {'again':>7} {'ours':>7} {'bytes':>13} {'share':>5}"]
    for row in rows:
        again = "" if row.again is None else f"{row.again.value:.3g}"
        lines.append(
            f"{row.published.file:{width}} {row.published.kld:7.3g} {again:>7} {row.ours.value:7.3g} "
            f"{row.bytes:13,} {row.share:5.2f}"
        )
    return "\n".join(lines)


@click.command()
@click.argument("published", metavar="TABLE", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--imatrix", type=click.Path(path_type=Path, exists=True), help="Measure with this first.")
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True, help="State file of the model.")
@click.option("--types", help="Types for ours.  [default: all that were measured]")
@click.option("-c", "--ctx", type=int)
@click.option("--chunks", type=int)
@click.option("-t", "--threads", default=os.cpu_count() or 1)
def main(
    published: Path, model: Path, imatrix: Path | None, text: Path, state: Path, types: str | None, ctx: int | None,
    chunks: int | None, threads: int,
) -> None:  # fmt: skip
    if imatrix is not None:
        with planner.open_state(state, create=True) as opened:
            opened.measure(model, imatrix=imatrix, threads=threads)
    with tempfile.TemporaryDirectory(dir=state.parent) as folder:
        bench = _Bench(model, text, ctx, chunks, threads, Path(folder))
        click.echo(table([*measured_against(read_published(published), state, bench, types=types)]))


if __name__ == "__main__":
    main()
