"""How long a plan takes as a whole process, beside what it is made of: `python -m benchmarks.startup`.

The state is of Kimi K2's 1,096 tensors, 731 of them in 18 formats each. Runs alternate, so that all see the same
machine; the least of each is what it takes where nothing else runs, the median what it took here.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.solvers.problems import Tensor, options, tensors
from planner.digests import digest
from state import Inventory, Measurement, Store, TensorRecord

ROOT = Path(__file__).parents[1]
MODEL, VECTORS = "Kimi-K2-Thinking", 365
BYTES = {"bf16": 2, "f32": 4}


def write_state(path: Path) -> None:
    known = tensors(MODEL)
    vectors = {f"blk.{block}.attn_norm.weight": (7168,) for block in range(VECTORS)}
    records = [_record(tensor.name, tensor.shape, "bf16", None) for tensor in known]
    records += [_record(name, shape, "f32", "a vector") for name, shape in vectors.items()]
    inventory = Inventory(
        model_name=MODEL, architecture="deepseek2", model_digest=digest(MODEL), model_path="x.gguf",
        header_bytes=10**7, alignment=32, imatrix_name="x", imatrix_digest=digest("imatrix"), has_means=True,
        metadata={"block_count": 61, "expert_count": 384}, tensors=tuple(records),
    )  # fmt: skip
    measured = [entry for tensor in known for entry in _measured(tensor)]
    with Store.open(path, create=True) as store:
        store.set_inventory(inventory)
        store.add(measured)
        store.select(entry.key for entry in measured)


def _record(name: str, shape: tuple[int, ...], source: str, left_alone: str | None) -> TensorRecord:
    elements = math.prod(shape)
    return TensorRecord(
        name=name, shape=shape, source_format=source, elements=elements, nbytes=elements * BYTES[source],
        row_length=shape[0], left_alone=left_alone,
    )  # fmt: skip


def _measured(tensor: Tensor) -> list[Measurement]:
    return [
        Measurement(digest(tensor.name, fmt), tensor.name, fmt, loss, 0.0, 0.0, 0.02 * loss, 0.0, 64, 0.1, "made up")
        for _, loss, fmt in zip(*options(tensor), strict=True)
        if fmt != "bf16"
    ]


def seconds(words: list[str]) -> float:
    """Run Python with these words; return how long it took. Bytecode is kept, as it is where planner is installed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], env=kept | {"PYTHONPATH": path}, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        state, recipe = Path(folder, "x.planner"), Path(folder, "recipe.json")
        write_state(state)
        solve = f"-m planner solve --bpw 4 --sensitivity uniform --state {state} -o {recipe}"
        commands = {
            "python": ["-c", "pass"],
            "and numpy": ["-c", "import numpy"],
            "and pydantic": ["-c", "import numpy, pydantic; pydantic.BaseModel"],
            "planner --help": ["-m", "planner", "--help"],
            "planner solve": solve.split(" "),
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(runs + 1):
            for name, words in commands.items():
                lasted = seconds(words)
                if turn:  # the first may have to compile
                    taken[name].append(lasted)
    print(f"{'command':<16}{'least':>8}{'median':>8}  seconds, of {runs} runs")
    for name, times in taken.items():
        print(f"{name:<16}{min(times):>8.3f}{statistics.median(times):>8.3f}")


if __name__ == "__main__":
    main()
