"""`solve`: the parts put together, by method."""

from __future__ import annotations

import math
import time
from typing import Literal, get_args

import numpy as np

from solvers.arrays import IntArray
from solvers.bound import slack_of, total_loss
from solvers.check import check
from solvers.conflicts import analyse
from solvers.core import extract
from solvers.dual import lagrangian, proves_infeasible
from solvers.errors import InfeasibleError, ProblemError
from solvers.greedy import polish, repair
from solvers.problem import Problem
from solvers.reduction import Reduced, ragged_argmin, reduce
from solvers.search import Found, search
from solvers.solution import Solution, Status, Usage, relative_gap

__all__ = ["METHODS", "Method", "solve"]

Method = Literal["auto", "cp-sat", "dp", "lagrangian", "milp"]
METHODS: tuple[str, ...] = get_args(Method)

AUTO_WIDTHS = (256, 4096, 65536)
DP_WIDTHS = tuple(4**k for k in range(4, 13))
ROUNDING = 1e-12  # relative; a gap of this size is none
HISTORY = 2**26  # states of all stages of a search together: 512 MB


def solve(
    problem: Problem,
    *,
    method: str = "auto",
    gap: float = 1e-6,
    time_limit: float | None = 60.0,
    seed: int = 0,
    threads: int = 1,
) -> Solution:
    """The best choice of one option a group within every limit, with a proven bound.

    Stops when (loss - bound) / loss <= `gap`, or after about `time_limit` seconds (`None`: never) with the best answer
    and bound of that moment. The same `seed` and `threads` give the same answer, unless the time limit strikes.
    Whatever the method, no single group of the answer can be changed for the better within the limits.

    - `lagrangian`: prices, repair and upgrades only; milliseconds, and a gap of about 1e-4
    - `dp`: then dynamic programming over what the bound leaves open, ever wider
    - `cp-sat`, `milp`: then CP-SAT or SCIP on that
    - `auto`: then dynamic programming up to a moderate width, and CP-SAT for what it cannot close

    Raises `InfeasibleError` (with an analysis) if it is proven that no choice satisfies the limits,
    `ProblemError` for arguments that make no sense.
    """
    _check_arguments(method, gap, time_limit, threads)
    outcome = _solve(problem, method, gap, time_limit, seed, threads)
    if outcome is not None:
        return outcome

    def decide(smaller: Problem, gap: float) -> Solution | None:
        return _solve(smaller, "auto", gap, 10.0 if time_limit is None else min(10.0, time_limit), seed, threads)

    raise InfeasibleError(analyse(problem, decide))


def _check_arguments(method: str, gap: float, time_limit: float | None, threads: int) -> None:
    if method not in METHODS:
        raise ProblemError(f"there is no method {method!r}; there are: {', '.join(METHODS)}")
    if not gap >= 0.0:
        raise ProblemError(f"gap is {gap}: it must be at least 0")
    if time_limit is not None and not time_limit >= 0.0:
        raise ProblemError(f"time_limit is {time_limit}: give seconds, at least 0, or None")
    if threads < 1:
        raise ProblemError(f"threads is {threads}: it must be at least 1")


def _solve(
    problem: Problem, method: str, gap: float, time_limit: float | None, seed: int, threads: int
) -> Solution | None:
    """`None` if infeasible."""
    started = time.monotonic()
    deadline = math.inf if time_limit is None else started + time_limit
    reduced = reduce(problem)
    if reduced is None:
        return None
    run = _Run(problem, reduced, gap, started, deadline)
    run.start()
    if not run.infeasible and method in ("auto", "dp"):
        run.widen(AUTO_WIDTHS if method == "auto" else DP_WIDTHS)
    if not run.infeasible and method in ("auto", "cp-sat", "milp"):
        run.hand_over("milp" if method == "milp" else "cp-sat", seed, threads)
    return None if run.infeasible else run.solution()


class _Run:
    """The best answer and the best bound so far, and what improves them."""

    def __init__(self, problem: Problem, reduced: Reduced, gap: float, started: float, deadline: float) -> None:
        self.problem, self.reduced, self.gap = problem, reduced, gap
        self.started, self.deadline = started, deadline
        self.choice: IntArray | None = None
        self.loss, self.low = math.inf, 0.0
        self.method = "none"
        self.infeasible = self.optimal = False
        most = np.maximum.reduceat(reduced.losses, reduced.starts).tolist() if reduced.losses.size else []
        self.ceiling = math.fsum(most) * (1.0 + 2.0**-30) or 1.0  # above every loss, the greatest too

    def start(self) -> None:
        """Prices, their bound, and the best answer that repair and upgrades make of the choices met on the way."""
        self.bound, choices = lagrangian(self.reduced, self.deadline)
        self.low = self.bound.value
        if self.low > self.ceiling:
            self.infeasible = True
            return
        if len(self.reduced.limits) > 1:
            lightest = (self.reduced.weights / np.maximum(self.reduced.capacities, 1)[:, None]).sum(axis=0)
            choices.append(ragged_argmin(lightest, self.reduced.offsets))
        for choice in choices:
            self.offer(repair(self.reduced, choice), "lagrangian")
        if self.choice is None:
            self.infeasible = proves_infeasible(self.reduced, self.deadline)

    def offer(self, choice: IntArray | None, method: str) -> None:
        """Take `choice` (flat indices), made upgrade-maximal, if it is the best so far. Must hold the limits."""
        if choice is None or (slack_of(self.reduced, choice) < 0).any():
            return
        choice = polish(self.reduced, choice, self.bound.prices)
        if (loss := total_loss(self.reduced, choice)) < self.loss:
            self.choice, self.loss, self.method = choice, loss, method

    @property
    def threshold(self) -> float:
        """Only a loss below this is of interest: about what the gap allows the bound to be, with room for rounding."""
        if self.choice is None:
            return self.ceiling
        return self.loss * (1.0 - 0.99 * self.gap) if self.gap > ROUNDING else self.loss

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do or no time to do it."""
        close = self.choice is not None and relative_gap(self.loss, self.low) <= max(self.gap, ROUNDING)
        return self.infeasible or self.optimal or close or time.monotonic() >= self.deadline

    def widen(self, widths: tuple[int, ...]) -> None:
        """Dynamic programming over the core, wider each time; the core shrinks as answers improve."""
        for width in widths:
            if self.done:
                return
            core = extract(self.reduced, self.bound, self.threshold)
            allowed = max(256, HISTORY // (len(core.groups) + 1))
            room = self.threshold - self.bound.value
            self.learn(search(core, room, min(width, allowed), self.deadline), "dp")
            if width >= allowed:
                return

    def hand_over(self, method: str, seed: int, threads: int) -> None:
        """CP-SAT or SCIP over the core."""
        if self.done:
            return
        from solvers.cpsat import cp_sat
        from solvers.milp import milp

        core = extract(self.reduced, self.bound, self.threshold)
        hint = {} if self.choice is None else {item.group: int(self.choice[item.group]) for item in core.groups}
        seconds = min(self.deadline - time.monotonic(), 1e9)
        slack = 0.0 if self.choice is None else self.loss * self.gap / 2
        solver = milp if method == "milp" else cp_sat
        self.learn(solver(core, self.reduced.losses, hint, seconds, slack, seed, threads), method)

    def learn(self, found: Found, method: str) -> None:
        """Take over what a search below the present threshold found and proved."""
        threshold, loss = self.threshold, self.loss
        if found.choice is not None:
            choice = self.bound.choice.copy()
            choice[list(found.choice)] = list(found.choice.values())
            self.offer(choice, method)
        elif found.complete and self.choice is None:
            self.infeasible = True
        self.optimal = found.complete and (found.choice is not None or threshold >= loss)
        self.low = max(self.low, min(threshold, math.nextafter(self.bound.value + found.proven, -math.inf)))

    def solution(self) -> Solution:
        """The answer, recomputed from the problem as it was given."""
        problem, prices = self.problem, dict(zip(self.reduced.limits, self.bound.prices.tolist(), strict=True))
        picks, used, size = None, None, 0
        if self.choice is not None:
            picks = tuple((self.reduced.origin[self.choice] - problem.offsets[:-1]).tolist())
            checked = check(problem, picks)
            if not checked.feasible:
                raise AssertionError(f"the answer breaks limits {checked.broken}: this is a bug")
            used, size, self.loss = checked.used, checked.bytes, float(checked.loss)
        usage = tuple(
            Usage(
                limit.name,
                limit.capacity,
                problem.unscaled(i, used[i]) if used is not None else 0,
                prices.get(i, 0.0) * problem.scales[i],
            )
            for i, limit in enumerate(problem.limits)
        )
        low = min(self.low, self.loss)
        left = relative_gap(self.loss, low)
        if self.choice is not None and (self.optimal or left <= ROUNDING):
            status = Status.OPTIMAL
        elif self.choice is not None and left <= self.gap:
            status = Status.WITHIN_GAP
        else:
            status = Status.TIME_LIMIT if time.monotonic() >= self.deadline else Status.EXHAUSTED
        seconds = time.monotonic() - self.started
        return Solution(picks, status, self.loss, low, size, usage, self.method, seconds)
