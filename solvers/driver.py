"""`solve`: the parts put together, by method."""

from __future__ import annotations

import time
from typing import Literal, get_args

import numpy as np

from solvers.bound import Bound, certify, total_loss
from solvers.check import check
from solvers.conflicts import limits_below_minimum
from solvers.dual import single_dual
from solvers.errors import InfeasibleError, ProblemError
from solvers.greedy import polish
from solvers.problem import IntArray, Problem
from solvers.reduction import Reduced, reduce
from solvers.solution import Solution, Status, Usage, relative_gap

__all__ = ["METHODS", "Method", "solve"]

Method = Literal["auto", "cp-sat", "dp", "lagrangian", "milp"]
METHODS: tuple[str, ...] = get_args(Method)


def solve(
    problem: Problem,
    *,
    method: str = "auto",
    gap: float = 1e-6,
    time_limit: float | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Solution:
    """The best choice of one option a group within every limit, with a proven bound.

    Stops when (loss - bound) / loss <= `gap`, or after `time_limit` seconds with the best answer and bound of that
    moment. The same `seed` and `threads` give the same answer, unless the time limit strikes. Whatever the method, no
    single group of the answer can be changed for the better within the limits.

    Raises `InfeasibleError` (with an analysis) if it is proven that no choice satisfies the limits,
    `ProblemError` for arguments that make no sense.
    """
    if method not in METHODS:
        raise ProblemError(f"there is no method {method!r}; there are: {', '.join(METHODS)}")
    if not gap >= 0.0:
        raise ProblemError(f"gap is {gap}: it must be at least 0")
    if time_limit is not None and not time_limit >= 0.0:
        raise ProblemError(f"time_limit is {time_limit}: give seconds, at least 0, or None")
    if threads < 1:
        raise ProblemError(f"threads is {threads}: it must be at least 1")
    started = time.monotonic()
    reduced = reduce(problem)
    if reduced is None:
        analysis = limits_below_minimum(problem)
        assert analysis is not None
        raise InfeasibleError(analysis)
    if len(reduced.limits) > 1:
        raise NotImplementedError("several binding limits")
    if reduced.limits:
        bound, choice = single_dual(reduced)
        choice = polish(reduced, choice, bound.prices)
    else:
        bound, choice = certify(reduced, np.zeros(0)), reduced.starts
    return _solution(problem, reduced, bound, choice, gap, started)


def _solution(
    problem: Problem, reduced: Reduced, bound: Bound, choice: IntArray, gap: float, started: float
) -> Solution:
    picks = tuple((reduced.origin[choice] - problem.offsets[:-1]).tolist())
    checked = check(problem, picks)
    assert checked.feasible
    loss = total_loss(reduced, choice)
    prices = dict(zip(reduced.limits, bound.prices.tolist(), strict=True))
    usage = tuple(
        Usage(
            limit.name,
            limit.capacity,
            problem.unscaled(i, checked.used[i]),
            prices.get(i, 0.0) * problem.scales[i],
        )
        for i, limit in enumerate(problem.limits)
    )
    value = min(bound.value, loss)
    left = relative_gap(loss, value)
    status = Status.OPTIMAL if left <= 1e-12 else Status.WITHIN_GAP if left <= gap else Status.EXHAUSTED
    return Solution(picks, status, loss, value, checked.bytes, usage, "lagrangian", time.monotonic() - started)
