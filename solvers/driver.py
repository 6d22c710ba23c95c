"""`solve`: reduce the problem, run a method, and explain infeasibility."""

from __future__ import annotations

import time
from dataclasses import replace

from solvers.conflicts import analyse
from solvers.errors import InfeasibleError
from solvers.methods import METHODS, Method, method_named
from solvers.problem import Problem
from solvers.reduction import reduce
from solvers.run import Run, Settings
from solvers.solution import Solution

__all__ = ["attempt", "solve"]

_ANALYSIS_SECONDS = 10.0  # at most, for each problem solved to explain infeasibility


def solve(
    problem: Problem,
    *,
    method: str = "auto",
    gap: float = 1e-6,
    time_limit: float | None = 60.0,
    seed: int = 0,
    threads: int = 1,
) -> Solution:
    """Find the best choice of one option a group within every limit, with a proven bound.

    Stops when (loss - bound) / loss <= `gap`, or after about `time_limit` seconds (`None`: never) with the best answer
    and bound so far. The same `seed` and `threads` give the same answer, unless the time limit strikes. Whatever the
    method, no change of a single group improves the answer within the limits.

    `method` is one of `METHODS`, each with its summary. All begin with prices, repair and upgrades.

    Raises `InfeasibleError` (with an analysis) if it is proven that no choice satisfies the limits, `ProblemError` for
    invalid arguments.
    """
    outcome = attempt(problem, method=method, gap=gap, time_limit=time_limit, seed=seed, threads=threads)
    if outcome is not None:
        return outcome
    settings = Settings(gap, time_limit, seed, threads)
    seconds = _ANALYSIS_SECONDS if time_limit is None else min(_ANALYSIS_SECONDS, time_limit)

    def decide(smaller: Problem, gap: float) -> Solution | None:
        return _solve(smaller, METHODS["auto"], replace(settings, gap=gap, time_limit=seconds))

    raise InfeasibleError(analyse(problem, decide))


def attempt(
    problem: Problem, *, method: str, gap: float, time_limit: float | None, seed: int = 0, threads: int = 1
) -> Solution | None:
    """Solve as `solve` does; return `None` if it is proven that no choice satisfies the limits, without looking for
    the reason."""
    return _solve(problem, method_named(method, len(problem.limits)), Settings(gap, time_limit, seed, threads))


def _solve(problem: Problem, method: Method, settings: Settings) -> Solution | None:
    """Run a method; return `None` if the problem is proven infeasible."""
    started = time.monotonic()
    reduced = reduce(problem)
    if reduced is None:
        return None
    run = Run.start(problem, reduced, settings, started)
    for step in method.steps:
        if run.done:
            break
        step(run)
    return None if run.infeasible else run.solution()
