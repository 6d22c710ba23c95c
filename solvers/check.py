"""Recompute an answer from the problem as it was given, in exact integer arithmetic.

Shares no code with the methods: every answer is checked here before it is returned, whatever found it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from solvers.problem import Problem

__all__ = ["Checked", "check"]


class Checked(NamedTuple):
    """`bytes` and `used` (one integer a limit, in scaled units) are exact, `loss` is the exact sum of the floats."""

    bytes: int
    loss: Fraction
    used: tuple[int, ...]
    broken: tuple[str, ...]  # names of the limits that do not hold

    @property
    def feasible(self) -> bool:
        """True if every limit holds."""
        return not self.broken


def check(problem: Problem, picks: Sequence[int]) -> Checked:
    """Recompute weights and loss of `picks`, one option index a group.

    Raises `ValueError` if a pick is missing or is no option of its group.
    """
    if len(picks) != len(problem):
        raise ValueError(f"{len(picks)} picks for {len(problem)} groups")
    offsets = problem.offsets.tolist()
    chosen = []
    for g, pick in enumerate(picks):
        if not 0 <= pick < offsets[g + 1] - offsets[g]:
            raise ValueError(f"group {problem.names[g]!r} has no option {pick}")
        chosen.append(offsets[g] + pick)
    used = tuple(sum(row[chosen].tolist()) for row in problem.weights)
    broken = tuple(
        limit.name
        for limit, total, capacity in zip(problem.limits, used, problem.capacities, strict=True)
        if total > capacity
    )
    return Checked(sum(problem.sizes[chosen].tolist()), _exact_sum(problem.losses[chosen].tolist()), used, broken)


def _exact_sum(values: list[float]) -> Fraction:
    """Return the sum of floats without rounding: every float is an integer over a power of two."""
    ratios = [value.as_integer_ratio() for value in values]
    denominator = max((d for _, d in ratios), default=1)
    return Fraction(sum(n * (denominator // d) for n, d in ratios), denominator)
