"""Compiled quantizers against ggml's: bytes that differ, and how many times as fast.

    python -m benchmarks.kernels
    python -m benchmarks.kernels --types q4_K,q2_K --blocks 10_000_000 --model examples/prose-8m-f16.gguf

Blocks are of 32 weights. Half of them are awkward: zeros, ties, subnormal, huge, constant, single ones, of all sizes;
the others are a model's. Imatrix values are of five kinds, each for the same blocks. Speeds are of a model's weights
on one thread, both in turns, the best of five.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format, fast, formats, prepare_tables, quantize_by_ggml
from planner.formats.ggml.fast.agreement import awkward_rows, awkward_weights
from planner.gguf import open_model

Floats = NDArray[np.float32]

_WIDE, _ROWS, _BLOCK, _NONE = 512, 256, 32, np.empty(0, np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(fast.MODULES), help="types [default: all that are compiled]")
    parser.add_argument("--blocks", type=int, default=100_000, help="blocks of 32 for each type [default: 100,000]")
    parser.add_argument("--model", type=Path, default=Path("examples/prose-8m-f16.gguf"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    real = real_rows(given.model)
    columns = (
        ("seconds to", "blocks", "differing", "ggml", "ours", "times"),
        ("compile", "compared", "bytes", "ns/weight", "ns/weight", "faster"),
    )
    for first, words in zip((("", ""), ("type", "imatrix")), columns, strict=True):
        print("{:8} {:8} {:>10} {:>12} {:>9} {:>9} {:>9} {:>6}".format(*first, *words))
    wrong = 0
    for name in given.types.split(","):
        fmt = formats()[name]
        prepare_tables((fmt,))
        begun = time.process_time()
        function = fast.quantizer(fmt)
        compiled = time.process_time() - begun
        if function is None:
            print(f"{name:8} does not agree with the loaded ggml")
            wrong += 1
            continue
        for weighted in (True, False) if name in fast.WITHOUT_IMATRIX else (True,):
            blocks, differing = compared(fmt, function, real, weighted, given.blocks, given.seed)
            theirs, own = speeds(fmt, function, real, weighted)
            print(
                f"{name:8} {'yes' if weighted else 'no':8} {compiled:10.1f} {blocks:12,} {differing:9,} "
                f"{theirs:9.1f} {own:9.1f} {theirs / own:6.1f}",
                flush=True,
            )
            wrong += differing
    return 1 if wrong else 0


def real_rows(path: Path) -> Floats:
    """Weights of a model's matrices, f32[r, 512]."""
    with open_model(path) as model:
        parts = [
            model.rows(tensor).reshape(-1)
            for tensor in model.by_name.values()
            if len(tensor.shape) == 2 and tensor.shape[0] % _BLOCK == 0
        ]
    flat = np.concatenate(parts)
    return flat[: flat.size // _WIDE * _WIDE].reshape(-1, _WIDE)


def batches(
    fmt: Format, real: Floats, weighted: bool, blocks: int, seed: int
) -> Iterator[tuple[Floats, Floats | None]]:
    """Rows, and imatrix values or None, until there have been so many blocks."""
    random = np.random.default_rng(seed)
    made = 0
    while made < blocks:
        rows = awkward_rows(random, _ROWS, _WIDE)
        rows[::2] = real[random.integers(len(real), size=_ROWS // 2)]
        for weights in awkward_weights(random, _WIDE, fmt) if weighted else (None,):
            yield rows, weights
            made += rows.size // _BLOCK
            if made >= blocks:
                return


def compared(
    fmt: Format, function: fast.Quantizer, real: Floats, weighted: bool, blocks: int, seed: int
) -> tuple[int, int]:
    """How many blocks went through both, and how many bytes differed."""
    made = differing = 0
    for rows, weights in batches(fmt, real, weighted, blocks, seed):
        expected = quantize_by_ggml(fmt, rows, weights)
        out = np.zeros_like(expected)
        function(rows, _NONE if weights is None else weights, out)
        differing += int((out != expected).sum())
        made += rows.size // _BLOCK
    return made, differing


def speeds(fmt: Format, function: fast.Quantizer, real: Floats, weighted: bool) -> tuple[float, float]:
    """Nanoseconds of CPU time that ggml and ours take for a weight of the model."""
    rows = np.ascontiguousarray(real[:: max(1, len(real) // _ROWS)][:_ROWS])
    weights = np.random.default_rng(1).standard_normal(_WIDE).astype(np.float32) ** 2 if weighted else None
    out = np.zeros((len(rows), fmt.row_bytes(_WIDE)), np.uint8)
    theirs, own = [], []
    for _ in range(5):
        begun = time.thread_time()
        quantize_by_ggml(fmt, rows, weights)
        between = time.thread_time()
        function(rows, _NONE if weights is None else weights, out)
        theirs.append(between - begun)
        own.append(time.thread_time() - between)
    return min(theirs) * 1e9 / rows.size, min(own) * 1e9 / rows.size


if __name__ == "__main__":
    raise SystemExit(main())
