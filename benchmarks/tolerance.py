"""What sampling costs in quality: recipes from sampled errors, judged by the errors over all rows.

    python benchmarks/tolerance.py [MODEL IMATRIX]

For each tolerance: the share of rows that went through kernels, and by how much the recipes' losses exceed those of
recipes solved from the exact errors, at nine sizes. Takes some minutes for the bundled model.
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

from planner.formats.ggml import select_formats
from planner.gguf import open_model, read_imatrix
from planner.measure import Settings
from planner.measure.campaign import Campaign
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from state import Store

EXAMPLES = Path(__file__).parents[1] / "examples"
EXACT = 1e-9  # never reached by a sample, so all rows are measured
TOLERANCES = (EXACT, 0.02, 0.05, 0.1)
SIZES = [Fraction(bits, 10) for bits in (22, 26, 31, 36, 41, 46, 51, 57, 66)]


def main(model_path: str, imatrix_path: str) -> None:
    true_loss: dict[tuple[str, str], float] = {}
    best: dict[Fraction, float] = {}
    print(
        "tolerance    rows  loss over that of exact errors, %, at " + " ".join(f"{float(s):g}" for s in SIZES) + " bpw"
    )
    with open_model(model_path) as model, tempfile.TemporaryDirectory() as folder:
        imatrix = read_imatrix(imatrix_path)
        for tolerance in TOLERANCES:
            with Store.open(Path(folder) / f"{tolerance}.planner", create=True) as store:
                for _ in Campaign(model, imatrix, store, select_formats("all"), Settings(0, tolerance)).run(2):
                    pass
                findings = Findings.read(store)
                recipes = {size: make_plan(findings, PlanRequest(bpw=size)).recipe for size in SIZES}
                if tolerance == EXACT:
                    losses = findings.losses("structure")
                    for name in findings.errors:
                        true_loss |= {(name, fmt): loss for fmt, (_, loss) in losses.of(name).items()}
                    best = {size: recipe.loss for size, recipe in recipes.items()}
                found = store.measurements(selected=True).values()
            share = sum(m.rows for m in found) / sum(model.by_name[m.tensor].rows for m in found)
            regrets = [
                sum(true_loss.get((c.name, c.format), 0.0) for c in recipe.tensors) / best[size] - 1
                for size, recipe in recipes.items()
            ]
            label = "exact" if tolerance == EXACT else f"{tolerance:.0%}"
            print(f"{label:>9}  {share:6.1%}  " + " ".join(f"{100 * regret:.2f}" for regret in regrets), flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit(__doc__)
    main(*(sys.argv[1:] or (str(EXAMPLES / "prose-8m-f16.gguf"), str(EXAMPLES / "prose-8m-sums.imatrix.gguf"))))
