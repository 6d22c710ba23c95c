"""The main job as a library: measure a model, plan for a size, write the file.

python examples/plan.py 4.5MB small.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

from planner.digests import recipe_digest
from planner.formats.ggml import select_formats
from planner.gguf import open_model, read_imatrix
from planner.gguf.provenance import provenance_pairs
from planner.gguf.quantize import quantize_model
from planner.measure import Settings
from planner.measure.campaign import Campaign
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.report import role_table
from planner.sizes import parse_size
from state import Store

HERE = Path(sys.argv[0]).parent


def main(size: str, out: Path) -> None:
    """Write the bundled model to `out`, in `size` at most. Measurements are kept in example.planner."""
    imatrix = read_imatrix(HERE / "prose-8m-sums.imatrix.gguf")
    with open_model(HERE / "prose-8m-f16.gguf") as model, Store.open("example.planner", create=True) as store:
        for step in Campaign(model, imatrix, store, select_formats("k,q8_0"), Settings()).run(threads=2):
            if step.done == step.total:
                print(f"{step.done} measurements")
        recipe = make_plan(Findings.read(store), PlanRequest(budget=parse_size(size))).recipe
        print(role_table(recipe))
        written = quantize_model(
            model, recipe.formats, imatrix, out, file_type=recipe.file_type,
            extra=provenance_pairs(recipe_digest(recipe.formats)), force=True,
        )  # fmt: skip
    print(f"{written.bytes:,} bytes, {recipe.size:,} promised")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
