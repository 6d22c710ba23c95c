"""Keep the documentation true: run what it shows, and write what the program says of itself.

    python docs/refresh.py            rewrite the outputs, docs/cli.md and the table of docs/formats.md
    python docs/refresh.py --check    change nothing; say what is out of date, and exit 1

Every fenced ```console block of a page runs, in order, in an empty folder in which `examples` is the project's. Lines
that begin with `$ ` are commands, and what follows is their output, stdout and stderr together. `tests/test_docs.py`
does the same through these functions. Commands that cannot run everywhere stand in ```sh blocks, without output.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGES = tuple(
    ROOT / name
    for name in (
        "README.md", "docs/formats.md", "docs/limits.md", "docs/fit.md", "docs/recipe.md", "docs/dialects.md",
        "docs/state.md", "docs/evaluate.md", "examples/README.md", "CONTRIBUTING.md", "docs/design.md",
        "docs/quality.md", "benchmarks/README.md", "docs/imatrix.md", "docs/sensitivity.md", "docs/frontier.md",
        "docs/card.md", "docs/yardsticks.md",
    )
)  # fmt: skip
SCHEMA = ROOT / "docs/recipe.schema.json"
GENERATED = (*(ROOT / name for name in ("README.md", "docs/cli.md", "docs/formats.md", "docs/quality.md")), SCHEMA)
MEASURE = "planner measure examples/prose-8m-f16.gguf --imatrix examples/prose-8m-sums.imatrix.gguf"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DECIMAL = re.compile(r"-?\d+\.\d+")
_NUMBER = re.compile(r"-?\b\d[\d.,]*(e-\d+)?\b")
_REGION = re.compile(r"(<!-- (table|figures: \w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LAUNCHER = """#!{python}
import sys
sys.path.insert(0, {root!r})
from planner.cli import main
main()
"""


@dataclass(frozen=True)
class Example:
    """A command of a page and the output that the page shows for it."""

    command: str
    output: str


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def examples(block: str) -> list[Example]:
    """The commands of a console block. A backslash at the end of a line continues the command."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if found and not found[-1][1] and found[-1][0][-1].endswith("\\"):
            found[-1][0].append(line)
        elif line.startswith("$ "):
            found.append(([line[2:]], []))
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError(f"a console block begins with output: {line}")
    return [Example("\n".join(command), "\n".join(output).rstrip("\n")) for command, output in found]


@dataclass(frozen=True)
class Workshop:
    """A folder to run commands in: `examples` is there, `planner` and `python` are on the path."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, state: Path | None = None) -> Workshop:
        """Set one up in an empty folder; with a measured `state` of the bundled model, nothing is measured again."""
        (folder / "examples").symlink_to(ROOT / "examples")
        tools = folder / ".bin"
        tools.mkdir()
        launcher = tools / "planner"
        launcher.write_text(_LAUNCHER.format(python=sys.executable, root=str(ROOT)), encoding="utf-8")
        launcher.chmod(0o755)
        (tools / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        (tools / "python").chmod(0o755)
        workshop = cls(folder)
        if state is not None:
            shutil.copyfile(state, folder / "prose-8m-f16.planner")
            # nothing is left to measure, but the state learns what the model and the imatrix are called here
            status, output = workshop.run(MEASURE)
            if status != 0:
                raise RuntimeError(output)
        return workshop

    def run(self, command: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder / '.bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "80",
        }
        done = subprocess.run(
            command, shell=True, cwd=self.folder, env=environment, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        return done.returncode, done.stdout.replace(f"{self.folder}{os.sep}", "").rstrip("\n")


def normalized(output: str) -> str:
    """Output without what differs from run to run: times, how much was measured already, threads, rounding noise; and
    from processor to processor: what llama.cpp computes."""
    for pattern, steady in (
        (r"\d+\.\d+ s\b", "TIME s"),
        (r"\d+ of them new", "N of them new"),
        (r"\(gap [^%]* %", "(gap G %"),
        (r"^(llama-quantize .*) \d+$", r"\1 THREADS"),
    ):
        output = re.sub(pattern, steady, output, flags=re.MULTILINE)
    # rows of results; where all are alike, there is no error
    output = re.sub(
        r"^ *(\S+\.(gguf|kld)|floor|share of tokens) .*[\d%]$|^\S+ .* windows of \d+ tokens$",
        lambda row: " ".join(_NUMBER.sub("N", row[0]).replace(" ± N", "").split()), output, flags=re.M,
    )  # fmt: skip
    # columns are as wide as what llama.cpp computes
    output = re.sub(
        r"^(file|KLD of a token|KLD by|model|by text|greedy,|text) .*$",
        lambda row: " ".join(row[0].split()),
        output,
        flags=re.M,
    )
    return "\n".join(line.rstrip() for line in output.splitlines())


def without_decimals(output: str) -> str:
    """Normalized output on one line without its decimals: of what llama.cpp computes, tails of divergences differ by a
    tenth between processors, which round activations otherwise."""
    return " ".join(_DECIMAL.sub("N", normalized(output)).split())


def cli_reference() -> str:
    """docs/cli.md: the help of every command."""
    from planner.cli import cli

    parts = ["# Commands\n\nWritten by `python docs/refresh.py` from `--help`.\n"]
    settings = {**cli.context_settings, "terminal_width": 78}  # click's width on a terminal of 80
    with click.Context(cli, info_name="planner", **settings) as context:
        parts.append(f"```text\n{cli.get_help(context)}\n```\n")
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            with click.Context(command, parent=context, info_name=name, terminal_width=78) as inner:
                parts.append(f"## planner {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def formats_table() -> str:
    """The table of docs/formats.md, from the library and the benchmark's speeds."""
    from planner.formats.ggml import CANDIDATES, FORMAT_SETS, formats, has_tables

    results = json.loads((ROOT / "benchmarks/results/measuring.json").read_text(encoding="utf-8"))["quantize"]
    speeds = {name: results["weights"][name] / seconds / 1e6 for name, seconds in results["seconds"].items()}
    rows = ["| type | bits per weight | block | imatrix | Mweights/s | sets |", "|---|---:|---:|---|---:|---|"]
    for fmt in sorted(formats().values(), key=lambda fmt: (fmt.bpw, fmt.id)):
        if fmt.for_weights:
            sets = [name for name, members in FORMAT_SETS.items() if fmt.name in members]
            speed = f"{speeds[fmt.name]:.3g}" if fmt.name in speeds else ""
            tables = " (tables)" if has_tables(fmt) else ""
            rows.append(
                f"| `{fmt.name}` | {fmt.bpw:g} | {fmt.block} | {_imatrix(fmt.name)} | {speed}{tables} | "
                f"{', '.join(sets) if fmt.name in CANDIDATES else 'by name only'} |"
            )
    return "\n".join(rows) + "\n"


def _imatrix(name: str) -> str:
    from planner.formats.ggml import formats
    from planner.gguf import requires_imatrix

    fmt = formats()[name]
    if fmt.needs_imatrix:
        return "needed"
    return "needed in blocks" if requires_imatrix("blk.0.ffn_up.weight", fmt) else ""


def documented_ggml() -> str:
    """The version of ggml that pages and benchmarks were made with."""
    version = json.loads((ROOT / "benchmarks/results/measuring.json").read_text(encoding="utf-8"))["about"]["ggml"]
    assert isinstance(version, str)
    return version


def quality() -> dict[str, str]:
    """The regions of figures, from benchmarks/results/quality.csv: `model`, `mix`, `bytes`, `kld` (the mix's), and a
    column for each source of sensitivities with the KL divergence of its recipe at the same size."""
    source = ROOT / "benchmarks/results/quality.csv"
    if not source.exists():
        return {"figures: summary": "", "figures: all": "Not measured yet for this version.\n"}
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = [column for column in rows[0] if column not in ("model", "mix", "bytes", "kld")]
    models: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        models.setdefault(row["model"], []).append(row)

    def ratio(row: dict[str, str], kind: str) -> str:
        return f"{float(row[kind]) / float(row['kld']):.2f}" if row[kind] else ""

    def mean(entries: list[dict[str, str]], kind: str) -> str:
        if not all(row[kind] for row in entries):
            return ""  # a mean over fewer sizes would stand beside means over all
        logs = [math.log(float(row[kind]) / float(row["kld"])) for row in entries]
        return f"{math.exp(sum(logs) / len(logs)):.2f}"

    whole = [kind for kind in kinds if any(mean(entries, kind) for entries in models.values())]
    summary = [f"| model | sizes | {' | '.join(whole)} |", "|---|---:|" + "---:|" * len(whole)]
    every = []
    for model, entries in models.items():
        summary.append(f"| {model} | {len(entries)} | {' | '.join(mean(entries, kind) for kind in whole)} |")
        every += [f"## {model}", "", f"| mix | bytes | KLD of the mix | {' | '.join(kinds)} |"]
        every.append("|---|---:|---:|" + "---:|" * len(kinds))
        for row in entries:
            shares = " | ".join(ratio(row, kind) for kind in kinds)
            every.append(f"| {row['mix']} | {int(row['bytes']):,} | {float(row['kld']):.3g} | {shares} |")
        every += [f"| geometric mean | | | {' | '.join(mean(entries, kind) for kind in kinds)} |", ""]
    head = (
        "KL divergence from the original model, as a multiple of that of llama.cpp's own\n"
        "mix of the same size (geometric mean over sizes; below 1 is better):\n\n"
    )
    return {"figures: summary": head + "\n".join(summary) + "\n", "figures: all": "\n".join(every)}


def with_regions(page: Path, regions: Mapping[str, str]) -> str:
    """A page with its generated regions as they should be."""

    def fill(found: re.Match[str]) -> str:
        return found[1] + regions[found[2]] + found[3] if found[2] in regions else found[0]

    return _REGION.sub(fill, page.read_text(encoding="utf-8"))


def generated() -> dict[Path, str]:
    """Pages that are written from the program and from the benchmarks' results, and what they should hold."""
    regions = {"table": formats_table(), **quality()}
    from planner.recipe import recipe_schema

    pages = {page: with_regions(page, regions) for page in GENERATED if page.name != "cli.md" and page != SCHEMA}
    schema = json.dumps(recipe_schema(), indent=2) + "\n"
    return {**pages, ROOT / "docs/cli.md": cli_reference(), SCHEMA: schema}


def refreshed(page: Path, workshop: Workshop) -> str:
    """A page with the outputs that its commands have now. Raises RuntimeError where one fails."""

    def again(found: re.Match[str]) -> str:
        if found[1] != "console":
            return found[0]
        lines = []
        for example in examples(found[2]):
            status, output = workshop.run(example.command)
            if status != 0:
                raise RuntimeError(f"{page.name}: {example.command}: exit status {status}\n{output}")
            same = normalized(output) == normalized(example.output)
            lines += [f"$ {example.command}", *((example.output if same else output).splitlines()), ""]
        return "```console\n" + "\n".join(lines).rstrip("\n") + "\n```"

    return _FENCE.sub(again, page.read_text(encoding="utf-8"))


def outdated() -> Iterator[tuple[Path, str]]:
    """Pages whose generated parts are not as they should be, with their new text; then those whose outputs are not."""
    for page, text in generated().items():
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            yield page, text
    state: Path | None = None
    with tempfile.TemporaryDirectory(prefix="planner-docs-") as folder:
        for number, page in enumerate(PAGES):
            place = Path(folder, str(number))
            place.mkdir()
            text = refreshed(page, Workshop.make(place, state))
            measured = place / "prose-8m-f16.planner"
            state = state or (measured if measured.exists() else None)
            if text != page.read_text(encoding="utf-8"):
                yield page, text


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    found = False
    for page, text in outdated():
        found = True
        click.echo(f"{page.relative_to(ROOT)} {'is out of date' if check else 'rewritten'}")
        if not check:
            page.write_text(text, encoding="utf-8")
    raise SystemExit(1 if check and found else 0)


if __name__ == "__main__":
    main()
