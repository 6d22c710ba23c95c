"""How far measured sensitivities lie from `structure`: the spreads that `planner.sensitivity.measured` starts from.

    python -m benchmarks.measured_spread MODEL IMATRIX MEASURED.csv [MODEL IMATRIX MEASURED.csv …]

For each model, and for all together, the standard deviations of a drift with depth, of a role, of a role's own drift
and of a tensor's own that make its table (benchmarks/data/measured_sensitivity/README.md) most likely, by a search over
a grid.
"""

from __future__ import annotations

import csv
import itertools
import sys
from pathlib import Path

import numpy as np

from benchmarks.fit_structure import all_facts
from planner.names.gguf import role_of
from planner.sensitivity.measured import REACH
from planner.sensitivity.structure import stream_shares

_STEPS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8), (0.05, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.6), (0.15, 0.2, 0.25, 0.3, 0.35)

Spreads = tuple[float, float, float, float]
_UNKNOWN = 100.0  # variance of what is common to a model: any


def likelihoods(model: str, imatrix: str, table: str) -> dict[Spreads, float]:
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
    depth = blocks.astype(np.float64) / blocks.astype(np.int64).max()
    near, same_role = np.exp(-np.abs(depth[:, None] - depth) / REACH), roles[:, None] == roles

    def likelihood(spreads: Spreads) -> float:
        drift, role, own_drift, own = spreads
        covariance = drift**2 * near + same_role * (role**2 + own_drift**2 * near) + own**2 * np.eye(len(logs))
        covariance += _UNKNOWN
        return float(-np.linalg.slogdet(covariance)[1] - logs @ np.linalg.solve(covariance, logs))

    return {spreads: likelihood(spreads) for spreads in itertools.product(*_STEPS)}


def main(arguments: list[str]) -> None:
    if not arguments or len(arguments) % 3:
        sys.exit(__doc__)
    print("model                          depth   role  drift    own")
    each = []
    for model, imatrix, table in zip(*[iter(arguments)] * 3, strict=True):
        each.append(likelihoods(model, imatrix, table))
        _show(Path(model).name, each[-1])
    _show("all together", {spreads: sum(one[spreads] for one in each) for spreads in each[0]})


def _show(name: str, likely: dict[Spreads, float]) -> None:
    print(f"{name:28} " + "".join(f"{spread:7.2f}" for spread in max(likely, key=lambda spreads: likely[spreads])))


if __name__ == "__main__":
    main(sys.argv[1:])
