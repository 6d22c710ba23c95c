"""Solve the core by CP-SAT (ortools), imported when called: loading takes as long as most solves."""

from __future__ import annotations

from solvers.integers import integers
from solvers.task import Found, Task

__all__ = ["cp_sat"]


def cp_sat(task: Task) -> Found:
    """Minimize the core's loss. `Found.proven` is in excess over the core's bound."""
    from ortools.sat.python import cp_model

    core, exact = task.core, integers(task.core, task.losses)
    model = cp_model.CpModel()
    picks = []
    for item in core.groups:
        row = [model.new_bool_var("") for _ in item.options]
        model.add_exactly_one(row)
        for option, variable in zip(item.options.tolist(), row, strict=True):
            model.add_hint(variable, task.hint.get(item.group) == option)
        picks.append(row)
    flat = [variable for row in picks for variable in row]
    for rows, capacity in zip(exact.weights, exact.capacities, strict=True):
        model.add(cp_model.LinearExpr.weighted_sum(flat, [w for row in rows for w in row]) <= capacity)
    model.minimize(cp_model.LinearExpr.weighted_sum(flat, [units for row in exact.losses for units in row]))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(task.seconds, 0.01)
    solver.parameters.num_workers = task.threads
    solver.parameters.interleave_search = task.threads > 1
    solver.parameters.random_seed = task.seed % 2**31
    solver.parameters.absolute_gap_limit = task.gap / exact.scale
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Found(None, float("inf"), True)
    if status == cp_model.MODEL_INVALID:
        return Found(None, 0.0, False)
    choice = None
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        choice = {
            item.group: int(option)
            for item, row in zip(core.groups, picks, strict=True)
            for option, variable in zip(item.options, row, strict=True)
            if solver.boolean_value(variable)
        }
    closed = choice is not None and solver.best_objective_bound >= solver.objective_value
    return Found(choice, exact.excess(solver.best_objective_bound), closed)
