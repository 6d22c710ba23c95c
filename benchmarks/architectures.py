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
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import planner
from planner.gguf import open_model
from planner.names.gguf import ahead, role_of
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.sensitivity import SOURCES
from planner.sizes import parse_bits
from state import Pass, Store
from tests.architectures import ARCHITECTURES, EXAMPLE, write_model
from tests.models import delta_net, write_imatrix

__all__ = ["HEADER", "PAGE", "Row", "add_passes", "draft_table", "put", "row_of", "table"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architectures.md"
TEXT = EXAMPLE.with_name("evaluation.txt")
TYPES = "q4_0,q4_K,q6_K,q8_0"  # which need no tables, and of which some fit all rows
SIZE = 0.6  # of what is quantized, in the model
HEADER = (
    "| architecture | models | left alone | placed | by role | imatrix | quantized | KLD |\n"
    "|---|---|---:|---:|---|---|---|---:|"
)
_BLOCKS, _SIZES = 12, ("2.2", "3", "4.5")
_DRAFT_TYPES = "iq1_m,q2_K,q3_K,q4_K,q5_K,q6_K,q8_0"
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
            f"| {self.architecture} | {ARCHITECTURES[self.architecture]} | {self.left_alone} "
            f"| {self.placed} of {self.free} | {roles} | {'made' if self.imatrix else ''} | {written} | {kld} |"
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
    inventory = findings.inventory
    shares = [tensor.nbytes * (SIZE if tensor.left_alone is None else 1) for tensor in inventory.tensors]
    budget = inventory.header_bytes + int(sum(shares)) + inventory.alignment * len(shares)
    plan = make_plan(findings, PlanRequest(budget=budget, sensitivity="structure"))
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
    """Run a command of planner's there."""
    command = [sys.executable, "-m", "planner", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, check=False, text=True, capture_output=True)


def must(folder: Path, *words: object) -> None:
    """Run one that has to succeed."""
    done = run(folder, *words)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")


def table(rows: Iterable[Row]) -> str:
    """Return the rows as the page has them."""
    return "\n".join((HEADER, *map(str, rows)))


def draft_table(folder: Path) -> str:
    """Return the types and bytes of a draft head, whatever sensitivities come from, in a made-up model of twelve blocks
    whose imatrix has nothing of the head; `measured` has passes that say that it does not matter."""
    head = ahead(delta_net(blocks=_BLOCKS).arrays)
    model = delta_net(blocks=_BLOCKS).write(folder / "draft.gguf")
    matrix = write_imatrix(model, folder / "draft.imatrix", skip=head)
    with planner.open_state(folder / "draft.planner", create=True) as state:
        state.measure(model, imatrix=matrix, types=_DRAFT_TYPES)
    with Store.open(folder / "draft.planner") as store:
        add_passes(store, head)
        findings = Findings.read(store)
    cells: dict[str, list[str]] = {}
    columns = [(source, bpw) for source in SOURCES for bpw in _SIZES]
    for source, bpw in columns:
        plan = make_plan(findings, PlanRequest(bpw=parse_bits(bpw), sensitivity=source))
        for choice in plan.recipe.tensors:
            if choice.name in plan.drafted:
                cells.setdefault(role_of(choice.name)[1], []).append(f"{choice.format} {choice.bytes:,}")
    lines = ["| tensor | bpw | " + " | ".join(SOURCES) + " |", "|---|---:|" + "---|" * len(SOURCES)]
    for role, found in cells.items():
        for number, bpw in enumerate(_SIZES):
            lines.append(f"| {role} | {bpw} | " + " | ".join(found[number :: len(_SIZES)]) + " |")
    return "\n".join(lines)


def add_passes(store: Store, head: Collection[str]) -> None:
    """Add passes over single tensors, and one over all together, as others publish them: zeros for the draft head."""
    findings = Findings.read(store)
    errors = {name: each["q4_K"] for name, each in findings.errors.items() if "q4_K" in each}
    subject = findings.subject_of_passes()
    store.add_passes(
        Pass(
            key=f"{number:064x}", subject=subject, label="made up", formats=dict.fromkeys(names, "q4_K"),
            errors={name: tuple(errors[name]) for name in names}, kld=0.0 if {*names} <= set(head) else 0.01,
            stderr=1e-5, tokens=1, seconds=0.0,
        )
        for number, names in enumerate([*([name] for name in errors), list(errors)])
    )  # fmt: skip


def put(text: str, tables: Mapping[str, str]) -> str:
    """Return the page with these tables in their places."""

    def one(found: re.Match[str]) -> str:
        return f"{found[1]}{tables[found[2]]}\n{found[3]}" if found[2] in tables else found[0]

    return _REGION.sub(one, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("architectures", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help="keep the tables in docs/architectures.md")
    options = parser.parse_args()
    rows = []
    for architecture in options.architectures or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(architecture, Path(folder)))
            print(rows[-1], flush=True)
    if options.write:
        with tempfile.TemporaryDirectory() as folder:
            tables = {"rows": table(rows), "drafts": draft_table(Path(folder))}
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
