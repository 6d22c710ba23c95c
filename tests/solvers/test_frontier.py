"""The frontier against all choices, and explanations against the problem they explain."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Group, InfeasibleError, Limit, Option, Problem, ProblemError, check, explain, frontier, solve
from tests.solvers.oracle import best, problems


@settings(max_examples=200, deadline=None)
@given(problems(limits=1, least=1), st.fractions(0, 1, max_denominator=30))
def test_the_frontier_is_convex_and_no_choice_lies_below_it(problem: Problem, share: Fraction) -> None:
    line = frontier(problem)
    assert (np.diff(line.weights) > 0).all()
    assert (np.diff(line.prices) <= 0).all()
    low, high = (Fraction(int(line.weights[k]), line.scale) for k in (0, -1))
    capacity = low + share * (high - low)
    corner = line.corner(capacity)
    following = min(corner + 1, len(line) - 1)
    # the way from corner to corner in exact numbers: weights may be beyond what floats tell apart
    step = max(1, int(line.weights[following]) - int(line.weights[corner]))
    way = min(1.0, float((capacity * line.scale - int(line.weights[corner])) / step))
    on_line = line.losses[corner] + way * (line.losses[following] - line.losses[corner])
    truth = best(problem.with_capacity(line.limit, capacity))
    assert truth is not None
    assert float(truth) >= on_line * (1 - 1e-9) - 1e-12 * line.losses[corner]


@settings(max_examples=200, deadline=None)
@given(problems(limits=1, least=1))
def test_every_corner_is_the_best_choice_for_its_weight(problem: Problem) -> None:
    line = frontier(problem)
    for k in range(len(line)):
        at = check(problem, line.picks(k))
        assert at.used[0] == line.weights[k]
        assert math.isclose(float(at.loss), line.losses[k], rel_tol=1e-9, abs_tol=0.0)
        truth = best(problem.with_capacity(line.limit, Fraction(int(line.weights[k]), line.scale)))
        assert truth is not None
        # Corners that lie on the line but for rounding may be a rounding worse than the best.
        assert float(at.loss) <= float(truth) * (1 + 1e-9)


def test_exact_points_lie_between_the_corners_and_count_all_limits() -> None:
    groups = [Group(name, [Option(0, 9.0), Option(7, 1.0), Option(9, 0.0)]) for name in "abc"]
    problem = Problem.from_groups(groups, [Limit("file", 0), Limit("gpu", 7, ["a"])])
    line = frontier(problem)
    assert line.limit == "file"
    assert line.losses[line.corner(13)] == 19.0
    assert line.exact(27, gap=0.0).loss == 1.0  # "a" cannot have its best
    assert frontier(problem, "gpu").weights.tolist() == [0, 7, 9]
    with pytest.raises(ProblemError, match="no limit 'cpu'; there are: file, gpu"):
        frontier(problem, "cpu")
    with pytest.raises(ProblemError, match="below the least"):
        line.corner(-1)
    with pytest.raises(ProblemError, match="no corner 99"):
        line.picks(99)
    with pytest.raises(ProblemError, match="needs a limit"):
        frontier(Problem.from_groups(groups))


def test_explain_names_the_neighbours_in_loss_and_skips_the_dominated() -> None:
    options = [
        Option(4, 8.0, "q2"),
        Option(6, 3.0, "q3"),
        Option(7, 3.5, "bad"),
        Option(8, 1.0, "q4"),
        Option(9, 0.5, "q5"),
    ]
    problem = Problem.from_groups([Group("a", options), Group("b", [Option(1, 1.0, "pin")])], [Limit("file", 9)])
    answer = solve(problem, gap=0.0)
    told = explain(problem, answer, "a")
    assert told.option.label == "q4"
    assert told.better is not None
    assert told.worse is not None
    assert (told.better.option.label, told.better.bytes, told.better.loss, told.better.fits) == ("q5", 1, -0.5, False)
    assert (told.worse.option.label, told.worse.bytes, told.worse.loss, told.worse.fits) == ("q3", -2, 2.0, True)
    assert told.worse.rate == 1.0
    assert told.worse.used == {"file": -2}
    assert told.worse.net == pytest.approx(2.0 - 2 * told.prices["file"])
    pinned = explain(problem, answer, "b")
    assert pinned.better is None
    assert pinned.worse is None
    with pytest.raises(ProblemError, match="no group 'c'"):
        explain(problem, answer, "c")


@settings(max_examples=150, deadline=None)
@given(problems(least=1))
def test_what_fits_by_its_explanation_fits(problem: Problem) -> None:
    try:
        answer = solve(problem)
    except InfeasibleError:
        return
    assert answer.picks is not None
    for g, name in enumerate(problem.names):
        told = explain(problem, answer, name)
        assert told.better is None or not told.better.fits  # answers are upgrade-maximal
        for step in (told.better, told.worse):
            if step is not None:
                changed = check(problem, [*answer.picks[:g], step.index, *answer.picks[g + 1 :]])
                assert step.fits == changed.feasible
                assert step.bytes == changed.bytes - answer.bytes
