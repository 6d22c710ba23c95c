"""The main job as a library: measure a model, plan for a size, write the file.

python examples/plan.py 4.5MB small.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

import planner

HERE = Path(sys.argv[0]).parent
MODEL, IMATRIX = HERE / "prose-8m-f16.gguf", HERE / "prose-8m-sums.imatrix.gguf"


def main(size: str, out: str) -> None:
    """Write the bundled model to `out`, in `size` at most. Measurements are kept in example.planner."""
    with planner.open_state("example.planner", create=True) as state:
        print(f"{state.measure(MODEL, imatrix=IMATRIX, types='k,q8_0')} measurements")
        recipe = state.solve(budget=size).recipe
    print(planner.role_table(recipe))
    written = planner.quantize(MODEL, recipe, out, force=True)
    print(f"{written.bytes:,} bytes, {written.promised:,} promised")


if __name__ == "__main__":
    main(*sys.argv[1:])
