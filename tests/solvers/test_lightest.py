"""The lightest choice at a loss, against all choices."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Group, InfeasibleError, Limit, Option, Problem, ProblemError, check, lightest
from tests.solvers.oracle import problems


def choices(problem: Problem) -> list[tuple[int, Fraction]]:
    """Weight under the first limit (scaled) and exact loss of every choice that holds all limits."""
    picks = np.indices(np.diff(problem.offsets)).reshape(len(problem), -1) if len(problem) else np.zeros((0, 1), int)
    every = [check(problem, picks[:, k].tolist()) for k in range(picks.shape[1])]
    return [(entry.used[0], entry.loss) for entry in every if entry.feasible]


@settings(max_examples=150, deadline=None)
@given(problems(limits=3, least=1), st.integers(0, 2**32), st.sampled_from([1.0, 1.01]))
def test_no_choice_that_loses_so_little_is_lighter(problem: Problem, place: int, more: float) -> None:
    every = choices(problem)
    name = problem.limits[0].name
    if not every:
        with pytest.raises(InfeasibleError):
            lightest(problem, name, 1.0, gap=0.0)
        return
    most = float(every[place % len(every)][1]) * more  # the loss of some choice, or a little above it
    found = lightest(problem, name, most, gap=0.0)
    truth = min(weight for weight, loss in every if loss <= Fraction(most) * (1 + Fraction(1, 10**15)))
    assert found.found
    assert found.solution.picks is not None
    answer = check(found.problem, found.solution.picks)
    assert answer.feasible
    assert answer.loss <= Fraction(most) * (1 + Fraction(1, 10**11))
    # sums that differ by rounding alone count as equal
    lenient = min(weight for weight, loss in every if loss <= Fraction(most) * (1 + Fraction(1, 10**11)))
    assert lenient <= answer.used[0] <= truth
    assert found.problem.capacities[0] == answer.used[0]
    assert found.solution.usage[0].slack == 0
    assert found.least is not None
    assert found.least * problem.scales[0] <= truth
    assert found.least * problem.scales[0] >= lenient - abs(lenient) * 1e-9 - 1  # the proof closes
    at_that_weight = [loss for weight, loss in every if weight <= answer.used[0]]
    assert answer.loss <= min(at_that_weight) * (1 + Fraction(1, 10**9))


@settings(max_examples=60, deadline=None)
@given(problems(limits=3, least=1))
def test_a_loss_that_no_choice_reaches(problem: Problem) -> None:
    every = choices(problem)
    least = min((loss for _, loss in every), default=Fraction(0))
    if least <= 0:
        return
    found = lightest(problem, problem.limits[0].name, float(least) * 0.99, gap=0.0)
    assert not found.found
    assert found.least is None
    assert found.solution.loss == pytest.approx(float(least), rel=1e-9)


def test_a_gap_stops_early_and_says_so() -> None:
    groups = [Group(str(g), [Option(0, 100.0 + g), Option(1000 + 7 * g, 1.0 + g % 3)]) for g in range(60)]
    problem = Problem.from_groups(groups, [Limit("file", 10**6)])
    exact = lightest(problem, "file", 1500.0, gap=0.0)
    rough = lightest(problem, "file", 1500.0, gap=0.05)
    assert rough.least is not None
    assert exact.least == exact.problem.limits[0].capacity
    assert rough.least <= exact.least <= rough.problem.limits[0].capacity
    assert rough.problem.limits[0].capacity - rough.least <= 0.05 * rough.problem.limits[0].capacity


def test_arguments() -> None:
    problem = Problem.from_groups([Group("a", [Option(1, 1.0)])], [Limit("file", 1)])
    with pytest.raises(ProblemError, match="at least 0"):
        lightest(problem, "file", -1.0)
    with pytest.raises(ProblemError, match="no limit 'gpu'"):
        lightest(problem, "gpu", 1.0)
    assert lightest(problem, "file", float("inf")).solution.picks == (0,)
    none = Problem.from_groups([], [Limit("file", 1)])
    assert lightest(none, "file", 0.0).found
