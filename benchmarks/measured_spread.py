"""How far measured sensitivities lie from `structure`: the spreads that `planner.sensitivity.measured` starts from.

    python -m benchmarks.measured_spread MODEL IMATRIX MEASURED.csv [MODEL IMATRIX MEASURED.csv …]

For each model, the standard deviations common to a block, common to a role and of a tensor's own that make its table
(benchmarks/data/measured_sensitivity/README.md) most likely, by a search over a grid.
"""

from __future__ import annotations

import csv
import itertools
import sys
from pathlib import Path

import numpy as np

from benchmarks.fit_structure import all_facts
from planner.names.gguf import role_of
from planner.sensitivity.structure import stream_shares

_STEPS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
_UNKNOWN = 100.0  # variance of what is common to a model: any


def fit(model: str, imatrix: str, table: str) -> tuple[float, float, float]:
    facts = all_facts(model, imatrix)
    shares = stream_shares(facts)
    with Path(table).open(newline="") as file:
        rows = [(row["tensor"], float(row["sensitivity"])) for row in csv.DictReader(file)]
    # the tables' errors include massive channels, which `shares` takes apart
    massive = {name for name, own in facts.items() if own.added is not None and own.added.massive}
    rows = [
        (name, value) for name, value in rows
        if name in shares and role_of(name)[0] is not None and name not in massive
    ]  # fmt: skip
    logs = np.array([np.log(value / (shares[name].total / 2)) for name, value in rows])
    blocks, roles = (np.array([role_of(name)[part] for name, _ in rows]) for part in (0, 1))
    same_block, same_role = blocks[:, None] == blocks, roles[:, None] == roles

    def likelihood(spreads: tuple[float, float, float]) -> float:
        block, role, own = spreads
        covariance = block**2 * same_block + role**2 * same_role + own**2 * np.eye(len(logs)) + _UNKNOWN
        return float(-np.linalg.slogdet(covariance)[1] - logs @ np.linalg.solve(covariance, logs))

    return max(itertools.product(_STEPS, repeat=3), key=likelihood)


def main(arguments: list[str]) -> None:
    if not arguments or len(arguments) % 3:
        sys.exit(__doc__)
    print("model                          block   role    own")
    for model, imatrix, table in zip(*[iter(arguments)] * 3, strict=True):
        block, role, own = fit(model, imatrix, table)
        print(f"{Path(model).name:28} {block:7.2f}{role:7.2f}{own:7.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
