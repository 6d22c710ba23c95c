"""The core by a mixed-integer linear program (SCIP, through ortools): a second opinion.

It computes in floats with tolerances, so what it says is not taken on trust: the caller checks the choice, and the
bound is lowered by a margin.
"""

from __future__ import annotations

from solvers.core import Core
from solvers.integers import integers
from solvers.problem import FloatArray
from solvers.search import Found

__all__ = ["milp"]

MARGIN = 1e-7  # of the core's range of losses: a hundred times SCIP's dual tolerance


def milp(
    core: Core, losses: FloatArray, hint: dict[int, int], seconds: float, gap: float, seed: int, threads: int
) -> Found:
    """Minimize the core's loss; arguments as in `cp_sat`. Infeasibility found here is not taken as proven."""
    from ortools.linear_solver import pywraplp

    exact = integers(core, losses)
    span = max(sum(max(row) for row in exact.losses), 1)
    solver = pywraplp.Solver.CreateSolver("SCIP")
    if solver is None:
        return Found(None, 0.0, False)
    solver.SetTimeLimit(max(1, int(min(seconds, 1e6) * 1000)))
    solver.SetNumThreads(threads)
    solver.SetSolverSpecificParametersAsString(
        f"randomization/randomseedshift = {seed % 2**31}\nlimits/absgap = {gap / exact.scale / span!r}\nlimits/gap = 0"
    )
    picks = [[solver.BoolVar("") for _ in item.options] for item in core.groups]
    solver.SetHint(
        [variable for row in picks for variable in row],
        [float(hint.get(item.group) == option) for item in core.groups for option in item.options.tolist()],
    )
    for row in picks:
        solver.Add(solver.Sum(row) == 1)
    for rows, capacity in zip(exact.weights, exact.capacities, strict=True):
        unit = float(max(capacity, 1))
        terms = [(w / unit) * v for ws, row in zip(rows, picks, strict=True) for w, v in zip(ws, row, strict=True) if w]
        solver.Add(solver.Sum(terms) <= capacity / unit)
    units = [
        u / span * v for us, row in zip(exact.losses, picks, strict=True) for u, v in zip(us, row, strict=True) if u
    ]
    solver.Minimize(solver.Sum(units))
    status = solver.Solve()
    if status not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
        return Found(None, 0.0, False)
    choice = {
        item.group: int(item.options[max(range(len(row)), key=lambda j: row[j].solution_value())])
        for item, row in zip(core.groups, picks, strict=True)
    }
    return Found(choice, exact.excess((solver.Objective().BestBound() - MARGIN) * span), False)
