"""What planner does with models of many architectures: `python -m benchmarks.architectures --write`.

Small models with the names and shapes that llama.cpp gives their tensors (tests/architectures.py) go through all
commands: inspected, run for an importance matrix, measured, planned, quantized, and run once more. `--write` keeps the
table in docs/architectures.md; names of architectures print rows of these alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import planner
from planner.gguf import open_model
from planner.names.gguf import ahead, role_of
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from state import Store
from tests.architectures import ARCHITECTURES, EXAMPLE, write_model
from tests.models import delta_net, write_imatrix

__all__ = ["HEADER", "PAGE", "Row", "draft_table", "row_of", "table"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architectures.md"
TEXT = EXAMPLE.with_name("evaluation.txt")
TYPES = "q4_0,q4_K,q6_K,q8_0"  # which need no tables, and of which some fit all rows
SIZE = 0.6  # of the model's
HEADER = (
    "| architecture | models | left alone | placed | by role | imatrix | quantized | KLD |\n"
    "|---|---|---:|---:|---|---|---|---:|"
)
_REGION = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """An architecture's: matrices that llama.cpp leaves alone, tensors that structure places, roles that it does not
    with their numbers; whether an imatrix was made, a file written, and its KL divergence (None: it cannot be run)."""

    architecture: str
    left_alone: int
    placed: int
    free: int
    by_role: tuple[tuple[str, int], ...]
    imatrix: bool
    bpw: float | None
    kld: float | None

    def __str__(self) -> str:
        roles = ", ".join(f"{role} {count}" for role, count in self.by_role)
        kld = "" if self.kld is None else f"{self.kld:.3f}"
        written = "" if self.bpw is None else f"{self.bpw:.2f} bpw"
        return (
            f"| {self.architecture} | {ARCHITECTURES[self.architecture]} | {self.left_alone} | {self.placed} of {self.free} "
            f"| {roles} | {'made' if self.imatrix else ''} | {written} | {kld} |"
        )


def row_of(architecture: str, folder: Path) -> Row:
    """Take a model through all commands, in an empty folder. What cannot be run is planned without."""
    model, state, matrix = write_model(architecture, folder / "m.gguf"), folder / "s.planner", folder / "i.gguf"
    must(folder, "inspect", model)
    text = folder / "text.txt"
    text.write_text(TEXT.read_text(encoding="utf-8")[:2500], encoding="utf-8")
    read = run(folder, "imatrix", model, "--text", text, "--ctx", 64, "-o", matrix)
    made = read.returncode == 0
    if not made:
        print(f"{architecture}: {read.stderr[-400:]}", file=sys.stderr)
        write_imatrix(model, matrix)  # whose numbers say nothing, but which places what is placed
    must(folder, "measure", model, "--imatrix", matrix, "--types", TYPES, "--state", state)
    with Store.open(state, read_only=True) as store:
        findings = Findings.read(store)
    stored = sum(tensor.nbytes for tensor in findings.inventory.tensors)
    plan = make_plan(findings, PlanRequest(budget=int(SIZE * stored), sensitivity="structure"))
    planner.quantize(model, plan.recipe, folder / "out.gguf")
    must(folder, "inspect", "out.gguf")
    evaluated = run(folder, "evaluate", model, "out.gguf", "--text", text, "--ctx", 64, "--json")
    if evaluated.returncode:
        print(f"{architecture}: {evaluated.stderr[-400:]}", file=sys.stderr)
    kld = json.loads(evaluated.stdout)["files"][1]["kld"]["value"] if evaluated.returncode == 0 else None
    with open_model(model) as opened:
        matrices = {tensor.name for tensor in opened.tensors if tensor.rows > 1}
    drafted = set(plan.drafted)
    unplaced = Counter(role_of(name)[1] for name in plan.unplaced) + Counter("draft head" for _ in drafted)
    return Row(
        architecture, len(matrices - plan.sources.keys()), len(plan.sources) - unplaced.total(), len(plan.sources),
        tuple(sorted(unplaced.items())), made, plan.recipe.bpw, kld,
    )  # fmt: skip


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "planner", *map(str, words)]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, text=True, capture_output=True)


def must(folder: Path, *words: object) -> None:
    done = run(folder, *words)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")


def table(rows: Iterable[Row]) -> str:
    return "\n".join((HEADER, *map(str, rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help="keep the tables in docs/architectures.md")
    options = parser.parse_args()
    rows = []
    for architecture in options.architectures or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(architecture, Path(folder)))
            print(rows[-1], flush=True)
    if options.write:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), {"rows": table(rows)}), encoding="utf-8")


if __name__ == "__main__":
    main()
