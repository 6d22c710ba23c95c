"""What it costs to keep weights as they are in the file, instead of packed for the processor.

    python -m benchmarks.extra_buffers MODEL.gguf...

llama.cpp packs weights of some types again as it loads them, for faster multiplication. `planner` does without where
llama.cpp was compiled for AMX, as it crashes there. For every model: tokens per second of a prompt (pp512), of a
generation (tg32) and the seconds of loading, packed and not, taken in turns.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from planner.llama import loaded
from planner.llama.engine import Engine
from planner.llama.evaluate.bench import bench

ROUNDS = 3


def rates(path: Path, *, packed: bool, threads: int) -> tuple[float, float, float]:
    """Seconds of loading, and tokens per second of a prompt and of a generation."""
    kept: Callable[[], bool] = loaded.has_amx
    loaded.has_amx = lambda: not packed
    try:
        begun = time.perf_counter()
        with Engine(path, context=16, threads=threads):
            loading = time.perf_counter() - begun
        prompt, generation = bench(path, prompt=512, generation=32, repetitions=2, threads=threads)
    finally:
        loaded.has_amx = kept
    return loading, prompt.mean, generation.mean


def main(paths: list[Path]) -> None:
    threads = os.cpu_count() or 1
    print(f"{'model':24}  {'packed':>6}  {'load s':>7}  {'pp512/s':>9}  {'tg32/s':>8}   of packed")
    for path in paths:
        taken: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for packed, found in taken.items():
                found.append(rates(path, packed=packed, threads=threads))
        middle = {
            packed: [statistics.median(column) for column in zip(*found, strict=True)]
            for packed, found in taken.items()
        }
        for packed, (loading, prompt, generation) in middle.items():
            share = "" if packed else f"pp {prompt / middle[True][1]:.2f}, tg {generation / middle[True][2]:.2f}"
            word = "yes" if packed else "no"
            print(f"{path.stem[:24]:24}  {word:>6}  {loading:7.2f}  {prompt:9.1f}  {generation:8.1f}   {share}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main([Path(name) for name in sys.argv[1:]])
