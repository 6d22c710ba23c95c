"""One run of a method: the best answer and the best bound so far, and the proof at its end."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from solvers.arrays import IntArray
from solvers.bound import Bound, slack_of, total_loss
from solvers.check import check
from solvers.core import Core, extract
from solvers.dual import lagrangian, proves_infeasible
from solvers.errors import ProblemError
from solvers.greedy import polish, repair
from solvers.problem import Problem
from solvers.reduction import Reduced, ragged_argmin
from solvers.solution import Solution, Status, Usage, relative_gap
from solvers.task import Found, Task

__all__ = ["Run", "Settings"]

ROUNDING = 1e-12  # relative; a gap of this size counts as closed


@dataclass(frozen=True, slots=True)
class Settings:
    """Termination and reproducibility settings: see `solve`. Raises `ProblemError` for invalid values."""

    gap: float
    time_limit: float | None
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.gap >= 0.0:
            raise ProblemError(f"gap is {self.gap}: it must be at least 0")
        if self.time_limit is not None and not self.time_limit >= 0.0:
            raise ProblemError(f"time_limit is {self.time_limit}: give seconds, at least 0, or None")
        if self.threads < 1:
            raise ProblemError(f"threads is {self.threads}: it must be at least 1")


class Run:
    """The best answer and the best bound so far. Made by `start`, improved by `learn`, ended by `solution`.

    `choice` (flat indices of the reduced problem, `None` if there is no answer yet) has the loss `loss`, `low` is a
    lower bound on that of any choice, and `method` found it. `bound` is the Lagrangian's, from which cores are
    extracted.
    """

    def __init__(self, problem: Problem, reduced: Reduced, settings: Settings, started: float, bound: Bound) -> None:
        self.problem, self.reduced, self.settings, self.bound = problem, reduced, settings, bound
        self.started, self.deadline = started, _deadline(settings, started)
        self.choice: IntArray | None = None
        self.loss, self.low = math.inf, bound.value
        self.method = "none"
        most = np.maximum.reduceat(reduced.losses, reduced.starts).tolist() if reduced.losses.size else []
        self.ceiling = math.fsum(most) * (1.0 + 2.0**-30) or 1.0  # above every loss, the greatest too
        self.infeasible, self.optimal, self.searched = self.low > self.ceiling, False, False

    @classmethod
    def start(cls, problem: Problem, reduced: Reduced, settings: Settings, started: float) -> Run:
        """Find prices, their bound, and the best answer that repair and upgrades make of the choices met on the way.

        `started` is a time of `time.monotonic`; `reduced` is the problem's reduction.
        """
        bound, choices = lagrangian(reduced, _deadline(settings, started))
        run = cls(problem, reduced, settings, started, bound)
        if run.infeasible:
            return run
        if len(reduced.limits) > 1:
            lightest = (reduced.weights / np.maximum(reduced.capacities, 1)[:, None]).sum(axis=0)
            choices.append(ragged_argmin(lightest, reduced.offsets))
        for choice in choices:
            run.offer(repair(reduced, choice), "lagrangian")
        if run.choice is None:
            run.infeasible = proves_infeasible(reduced, run.deadline)
        return run

    def offer(self, choice: IntArray | None, method: str) -> None:
        """Take `choice` (flat indices), made upgrade-maximal, if it is feasible and the best so far."""
        if choice is None or (slack_of(self.reduced, choice) < 0).any():
            return
        choice = polish(self.reduced, choice, self.bound.prices)
        if (loss := total_loss(self.reduced, choice)) < self.loss:
            self.choice, self.loss, self.method = choice, loss, method

    @property
    def threshold(self) -> float:
        """Loss below which choices are of interest: that of the answer for the first search, which often proves it
        optimal; then about what the gap allows the bound to be, with a margin for rounding."""
        if self.choice is None:
            return self.ceiling
        gap = self.settings.gap if self.searched else 0.0
        return self.loss * (1.0 - 0.99 * gap) if gap > ROUNDING else self.loss

    @property
    def done(self) -> bool:
        """True if the search should end: it is infeasible, optimal, within the gap, or out of time."""
        close = self.choice is not None and relative_gap(self.loss, self.low) <= max(self.settings.gap, ROUNDING)
        return self.infeasible or self.optimal or close or time.monotonic() >= self.deadline

    def core(self) -> Core:
        """Extract the groups that are open below the current threshold."""
        return extract(self.reduced, self.bound, self.threshold)

    def task(self) -> Task:
        """Return the core as a task for a solver, with the answer so far."""
        core = self.core()
        hint = {} if self.choice is None else {item.group: int(self.choice[item.group]) for item in core.groups}
        gap = 0.0 if self.choice is None else self.loss * self.settings.gap / 2
        return Task(core, self.reduced.losses, hint, gap, self.deadline, self.settings.seed, self.settings.threads)

    def learn(self, found: Found, method: str) -> None:
        """Take over the answer and the proof of a search below the current threshold."""
        threshold, loss = self.threshold, self.loss
        if found.choice is not None:
            choice = self.bound.choice.copy()
            choice[list(found.choice)] = list(found.choice.values())
            self.offer(choice, method)
        elif found.complete and self.choice is None:
            self.infeasible = True
        self.optimal = found.complete and (found.choice is not None or threshold >= loss)
        self.low = max(self.low, min(threshold, math.nextafter(self.bound.value + found.proven, -math.inf)))
        self.searched = True

    def solution(self) -> Solution:
        """Return the answer, recomputed from the original problem.

        Raises `AssertionError` if it breaks a limit, which is a bug.
        """
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
        seconds = time.monotonic() - self.started
        return Solution(picks, self._status(low), self.loss, low, size, usage, self.method, seconds)

    def _status(self, low: float) -> Status:
        gap = relative_gap(self.loss, low)
        if self.choice is not None and (self.optimal or gap <= ROUNDING):
            return Status.OPTIMAL
        if self.choice is not None and gap <= self.settings.gap:
            return Status.WITHIN_GAP
        return Status.TIME_LIMIT if time.monotonic() >= self.deadline else Status.EXHAUSTED


def _deadline(settings: Settings, started: float) -> float:
    return math.inf if settings.time_limit is None else started + settings.time_limit
