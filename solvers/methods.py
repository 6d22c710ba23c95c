"""All methods of `solve`. A new one is a module with a `CoreSolver`, and one entry in the table below.

Every method begins with prices, repair and upgrades (`Run.start`); its steps follow, as long as there is anything left
to prove.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from solvers.cpsat import cp_sat
from solvers.errors import ProblemError
from solvers.milp import milp
from solvers.run import Run
from solvers.search import search
from solvers.task import CoreSolver

__all__ = ["METHODS", "Method", "method_named", "over_core", "widening"]

AUTO_WIDTHS = (256, 4096, 65536)
DP_WIDTHS = tuple(4**k for k in range(4, 13))
HISTORY = 2**26  # states of all stages of a search together: 512 MB

Step = Callable[[Run], None]


class Method(NamedTuple):
    """One way to solve: after the start, its `steps` in turn, which `summary` names.

    `proves`: given time, it closes every gap. `several_limits`: it takes more than one limit. `loads`: a package that
    is slow to import, which it does when it runs.
    """

    name: str
    summary: str
    steps: tuple[Step, ...] = ()
    proves: bool = False
    several_limits: bool = True
    loads: str | None = None


def over_core(name: str, solver: CoreSolver) -> Step:
    """Return a step that gives the core to `solver`, once; answers name it `name`."""

    def step(run: Run) -> None:
        run.learn(solver(run.task()), name)

    return step


def widening(widths: tuple[int, ...]) -> Step:
    """Return a step of dynamic programming over the core with these `widths` in turn, as far as memory allows; the core
    shrinks as answers improve."""

    def step(run: Run) -> None:
        for width in widths:
            if run.done:
                return
            core = run.core()
            widest = max(256, HISTORY // (len(core.groups) + 1))
            room = run.threshold - run.bound.value
            run.learn(search(core, room, min(width, widest), run.deadline), "dp")
            if width >= widest:
                return

    return step


_ALL = (
    Method("auto", "dynamic programming up to a moderate width, and CP-SAT for what it cannot close",
           (widening(AUTO_WIDTHS), over_core("cp-sat", cp_sat)), proves=True),
    Method("lagrangian", "nothing more; milliseconds, and a gap of about 1e-4"),
    Method("dp", "dynamic programming over all that the bound leaves open", (widening(DP_WIDTHS),), proves=True),
    Method("cp-sat", "CP-SAT on what the bound leaves open", (over_core("cp-sat", cp_sat),), loads="ortools"),
    Method("milp", "SCIP on the same, in floats with tolerances", (over_core("milp", milp),), loads="ortools"),
)  # fmt: skip
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})


def method_named(name: str, limits: int) -> Method:
    """Return the method called `name`. Raises `ProblemError` if there is none, or it does not take so many limits."""
    if name not in METHODS:
        raise ProblemError(f"there is no method {name!r}; there are: {', '.join(sorted(METHODS))}")
    method = METHODS[name]
    if limits > 1 and not method.several_limits:
        others = ", ".join(sorted(other.name for other in METHODS.values() if other.several_limits))
        raise ProblemError(f"method {name!r} takes one limit, and there are {limits}; these take several: {others}")
    return method
