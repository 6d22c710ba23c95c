"""How far passes of models lie from `structure` in nats: the spreads that `planner.sensitivity.measured` starts from
where the imatrix knows of reach.

    python -m benchmarks.pass_spread STATE [STATE …]

For each state with passes, and for all together, the standard deviations of what is common to a model, of a drift with
depth, of a role, of a role's own drift and of a tensor's own that make the passes most likely, to first order about
what is predicted; by steps of one of them at a time. Beside them, by how much more likely passes are than by those that
are used without reach, in nats.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from planner.plan.findings import Findings
from planner.plan.losses import observations
from planner.sensitivity import UP_TO_SCALE, Spreads, covariance_about
from planner.sensitivity.measured import evidence
from state import Store

_START, _FIRST_STEP, _LAST_STEP = Spreads(0.0, 0.2, 0.2, 0.2, 0.2, 0.2), 0.7, 0.08

Likelihood = Callable[[Spreads], float]


def likelihood_of(state: Path) -> Likelihood:
    with Store.open(state, read_only=True) as store:
        findings = Findings.read(store)
    if not findings.nats:
        sys.exit(f"{state}: losses are not in nats.")
    reference = findings.sensitivities("structure")
    passes = observations(findings.passes, reference)
    names = sorted({name for entry in passes for name in entry.losses})
    losses, seen, noise = evidence(names, passes)
    apart = seen - np.log(losses.sum(axis=1))
    slopes = losses / losses.sum(axis=1, keepdims=True)

    def likelihood(spreads: Spreads) -> float:
        prior = covariance_about(reference, names, spreads) + spreads.common**2
        covariance = slopes @ prior @ slopes.T + np.diag(noise)
        off = apart - spreads.centre
        return float(-np.linalg.slogdet(covariance)[1] - off @ np.linalg.solve(covariance, off)) / 2

    return likelihood


def most_likely(likelihood: Likelihood) -> Spreads:
    best, found, step = _START, likelihood(_START), _FIRST_STEP
    while step > _LAST_STEP:
        tried = [
            best._replace(**{name: getattr(best, name) * math.exp(sign * step)})
            for name in Spreads._fields[1:]
            for sign in (1, -1)
        ]
        better = max(tried, key=likelihood)
        if likelihood(better) > found + 1e-3:
            best, found = better, likelihood(better)
        else:
            step /= 2
    return best


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit(__doc__)
    each = {Path(argument).name: likelihood_of(Path(argument)) for argument in arguments}
    print("state                        common  depth   role  drift    own   gain")
    for label, likelihood in (
        *each.items(),
        ("all together", lambda spreads: sum(one(spreads) for one in each.values())),
    ):
        best = most_likely(likelihood)
        gain = likelihood(best) - likelihood(UP_TO_SCALE._replace(centre=0.0))
        print(f"{label:28} " + "".join(f"{spread:7.2f}" for spread in best[1:]) + f"{gain:7.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
