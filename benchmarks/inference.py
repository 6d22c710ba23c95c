"""Time of `evaluate` and `imatrix` beside llama-perplexity and llama-imatrix: whole processes on the same text.

    python benchmarks/inference.py MODEL QUANT --text TEXT --perplexity BINARY --imatrix BINARY [--chunks 8] [--ctx 512]

The binaries should be of llama-cpp-python's llama.cpp, or link its library. Each of the four works is done by turns,
ours first, `--repetitions` times, and the least time counts: of the clock, and of all processors together, which other
work on the machine changes less. Both evaluate with log-probabilities of MODEL that are made (`base`) and then there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memory import ROOT, RUN, folder_for


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock and of all processors, and the most memory, in MB."""

    clock: float
    processors: float
    peak: float


def spend(command: Sequence[str], folder: Path) -> Spent:
    """Run a command to its end."""
    began = time.perf_counter()
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    clock = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'said.txt').read_text()[-2000:]}")
    return Spent(clock, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def works(given: argparse.Namespace) -> Mapping[str, tuple[list[str], list[str]]]:
    """Return for each work our command and theirs."""
    model, quant, text = (str(path.resolve()) for path in (given.model, given.quant, given.text))
    planner = [sys.executable, "-c", RUN, str(ROOT)]
    common = ["-c", str(given.ctx), "--chunks", str(given.chunks), "-t", str(given.threads)]
    perplexity = [str(given.perplexity.resolve()), *common, "--kl-divergence-base", "theirs.kld"]
    return {
        "base": (
            [*planner, "evaluate", model, "--text", text, *common, "--kl-divergence-base", "ours.kld"],
            [*perplexity, "-m", model, "-f", text],
        ),
        "divergence": (
            [*planner, "evaluate", "ours.kld", quant, "-t", str(given.threads)],
            [*perplexity, "-m", quant, "--kl-divergence"],
        ),
        "imatrix": (
            [*planner, "imatrix", model, "--text", text, *common, "-f", "-o", "ours.gguf"],
            [str(given.imatrix.resolve()), "-m", model, "-f", text, *common, "--process-output", "-o", "theirs.gguf"],
        ),
    }


def run(given: argparse.Namespace, folder: Path) -> None:
    print(f"{given.model.name}, {given.quant.name}: {given.chunks} windows of {given.ctx}, {given.threads} threads\n")
    print(f"{'work':<12} {'seconds':>15} {'of processors':>17} {'ratio':>6} {'peak MB':>13}")
    for name, commands in works(given).items():
        best: list[list[Spent]] = [[], []]
        for _ in range(given.repetitions):
            (folder / "ours.kld.json").unlink(missing_ok=True)
            if name == "base":
                (folder / "ours.kld").unlink(missing_ok=True)
            for own, command in zip(best, commands, strict=True):
                own.append(spend(command, folder))
        ours, theirs = (
            Spent(*(min(getattr(each, field) for each in own) for field in ("clock", "processors", "peak")))
            for own in best
        )
        print(
            f"{name:<12} {ours.clock:>6.1f} : {theirs.clock:>6.1f} {ours.processors:>8.1f} : {theirs.processors:>6.1f} "
            f"{ours.processors / theirs.processors:>6.2f} {ours.peak:>5.0f} : {theirs.peak:>5.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("quant", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--perplexity", type=Path, required=True, help="llama-perplexity")
    parser.add_argument("--imatrix", type=Path, required=True, help="llama-imatrix")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files; they stay there")
    given = parser.parse_args()
    with folder_for(given.keep) as folder:
        run(given, folder)


if __name__ == "__main__":
    main()
