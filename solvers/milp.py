"""Solve the core by mixed-integer linear programming (SCIP, through ortools): a second opinion.

SCIP computes in floats with tolerances, so its results are verified: the caller checks the choice, and the bound is
lowered by a margin.
"""

from __future__ import annotations

from solvers.integers import integers
from solvers.task import Found, Task

__all__ = ["milp"]

MARGIN = 1e-7  # of the core's range of losses: a hundred times SCIP's dual tolerance


def milp(task: Task) -> Found:
    """Minimize the core's loss. Infeasibility reported by SCIP does not count as proven."""
    from ortools.linear_solver.python import model_builder

    core, exact = task.core, integers(task.core, task.losses)
    span = max(sum(max(row) for row in exact.losses), 1)
    # Not pywraplp: it keeps coefficients by address, so that the order of sums changes from run to run
    model, solver = model_builder.Model(), model_builder.Solver("SCIP")
    if not solver.solver_is_supported():
        return Found(None, 0.0, False)
    picks = [[model.new_bool_var("") for _ in item.options] for item in core.groups]
    flat = [variable for row in picks for variable in row]
    for item, row in zip(core.groups, picks, strict=True):
        model.add(model_builder.LinearExpr.sum(row) == 1)
        for option, variable in zip(item.options.tolist(), row, strict=True):
            model.add_hint(variable, float(task.hint.get(item.group) == option))
    for rows, capacity in zip(exact.weights, exact.capacities, strict=True):
        unit = float(max(capacity, 1))
        shares = [w / unit for row in rows for w in row]
        model.add(model_builder.LinearExpr.weighted_sum(flat, shares) <= capacity / unit)
    model.minimize(model_builder.LinearExpr.weighted_sum(flat, [u / span for row in exact.losses for u in row]))
    solver.set_time_limit_in_seconds(max(1e-3, min(task.seconds, 1e6)))
    solver.set_solver_specific_parameters(
        f"randomization/randomseedshift = {task.seed % 2**31}\nparallel/maxnthreads = {task.threads}\n"
        f"limits/absgap = {task.gap / exact.scale / span!r}\nlimits/gap = 0"
    )
    if solver.solve(model) not in (model_builder.SolveStatus.OPTIMAL, model_builder.SolveStatus.FEASIBLE):
        return Found(None, 0.0, False)
    choice = {
        item.group: int(item.options[max(range(len(row)), key=lambda j: solver.value(row[j]))])
        for item, row in zip(core.groups, picks, strict=True)
    }
    return Found(choice, exact.excess((solver.best_objective_bound - MARGIN) * span), False)
