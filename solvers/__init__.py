"""Multiple-choice knapsacks with several limits, solved with a proven bound.

Each group takes exactly one of its options; every limit bounds what the chosen options weigh together; the sum of
the losses is to be least.

>>> small, large = Option(bytes=10, loss=3.0, label="q4"), Option(bytes=17, loss=1.0, label="q6")
>>> problem = Problem.from_groups([Group("a", [small, large]), Group("b", [small, large])], [Limit("file", 30)])
>>> answer = solve(problem, gap=0.0)
>>> answer.picks, answer.loss, answer.bytes, answer.status.value
((1, 0), 4.0, 27, 'optimal')

Groups that must take the same format are one group with the sums of their bytes and losses; a pin is a group with one
option. A `Solution` says separately why the search ended (`status`) and what it found (`picks`, `None` if the time
was up before there was anything). If it is proven that nothing fits, `InfeasibleError` is raised; its `analysis`
names the limits in conflict and the least change that helps. Malformed problems raise `ProblemError`, its base class.

`frontier` sweeps one limit over all its capacities; `lightest` asks the other way round, for the least weight at a
loss; `explain` compares a group's option with those beside it; `check` recomputes any choice exactly. Modules in the
order in which `solve` uses them: `reduction` (dominated options), `dual` (prices and their `bound`), `greedy` (an
answer), `core` (options that the bound leaves open), and for the rest one of the `methods`, made of `search`, `cpsat`
and `milp`.
"""

from __future__ import annotations

from solvers.check import check
from solvers.choices import Group, Option
from solvers.driver import solve
from solvers.errors import Change, Infeasibility, InfeasibleError, ProblemError
from solvers.explanation import Explanation, Step, explain
from solvers.lightest import Lightest, lightest
from solvers.limits import Limit
from solvers.methods import METHODS, Method
from solvers.problem import Problem
from solvers.solution import Solution, Status, Usage
from solvers.sweep import Frontier, frontier

__all__ = [
    "METHODS",
    "Change",
    "Explanation",
    "Frontier",
    "Group",
    "Infeasibility",
    "InfeasibleError",
    "Lightest",
    "Limit",
    "Method",
    "Option",
    "Problem",
    "ProblemError",
    "Solution",
    "Status",
    "Step",
    "Usage",
    "check",
    "explain",
    "frontier",
    "lightest",
    "solve",
]
