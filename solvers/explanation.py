"""Explain a group's option by the costs and gains of the options beside it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from solvers.choices import Option
from solvers.errors import ProblemError
from solvers.problem import Problem
from solvers.solution import Solution

__all__ = ["Explanation", "Step", "explain"]


@dataclass(frozen=True, slots=True)
class Step:
    """A change of one group to option `index`.

    `bytes`, `loss` and `used` (by limit) are differences, negative for savings. `net` is `loss` plus the added weights
    at the answer's prices: a positive `net` is the step's disadvantage. `fits`: the limits still hold after it. `rate`
    is the loss saved or added per byte, `None` if no byte changes.
    """

    index: int
    option: Option
    bytes: int
    loss: float
    used: dict[str, int | Fraction]
    net: float
    fits: bool

    @property
    def rate(self) -> float | None:
        """Loss per byte: saved by one byte more, or added by one byte less."""
        return -self.loss / self.bytes if self.bytes else None


@dataclass(frozen=True, slots=True)
class Explanation:
    """One group at an answer. `better` and `worse`: the nearest options with less and with more loss, `None` if none.

    Dominated options (another is at least as good in bytes, in every limit and in loss) are skipped. `prices`: loss per
    unit of each limit.
    """

    group: str
    index: int
    option: Option
    better: Step | None
    worse: Step | None
    prices: dict[str, float]


def explain(problem: Problem, solution: Solution, group: str) -> Explanation:
    """Explain the option of `group` by the next better and the next worse one.

    Raises `ProblemError` if there is no such group, or if the solution has no answer or is of another problem.
    """
    if solution.picks is None:
        raise ProblemError("there is no answer to explain: the search ended without one")
    if len(solution.picks) != len(problem):
        raise ProblemError(f"the answer has {len(solution.picks)} groups, the problem {len(problem)}")
    g = problem.group(group)
    here = solution.picks[g]
    start, options = int(problem.offsets[g]), problem.options(g)
    burden = [(o.bytes, *problem.weights[:, start + j].tolist(), o.loss) for j, o in enumerate(options)]

    def dominated(j: int) -> bool:
        return any(
            other != burden[j] and all(a <= b for a, b in zip(other, burden[j], strict=True)) for other in burden
        )

    steps = {j: _step(problem, solution, g, j, options) for j in range(len(options)) if not dominated(j)}
    loss = options[here].loss
    better = [j for j in steps if options[j].loss < loss]
    worse = [j for j in steps if options[j].loss > loss]
    return Explanation(
        group,
        here,
        options[here],
        steps[max(better, key=lambda j: options[j].loss)] if better else None,
        steps[min(worse, key=lambda j: options[j].loss)] if worse else None,
        solution.prices,
    )


def _step(problem: Problem, solution: Solution, g: int, j: int, options: list[Option]) -> Step:
    assert solution.picks is not None
    here, start = solution.picks[g], int(problem.offsets[g])
    used = {
        limit.name: problem.unscaled(i, int(problem.weights[i, start + j]) - int(problem.weights[i, start + here]))
        for i, limit in enumerate(problem.limits)
    }
    loss = options[j].loss - options[here].loss
    net = loss + sum(solution.prices[name] * float(weight) for name, weight in used.items())
    fits = all(used[usage.name] <= usage.slack for usage in solution.usage)
    return Step(j, options[j], options[j].bytes - options[here].bytes, loss, used, net, fits)
