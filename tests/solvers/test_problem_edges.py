"""Numbers at the edges: right answers or clear errors."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from solvers import (
    Group,
    InfeasibleError,
    Limit,
    Option,
    Problem,
    ProblemError,
    Status,
    check,
    solve,
)


def pair(*options: tuple[int, float]) -> list[Option]:
    return [Option(size, loss, f"{size}") for size, loss in options]


def test_no_groups() -> None:
    answer = solve(Problem.from_groups([], [Limit("file", 0)]))
    assert (answer.picks, answer.loss, answer.bound, answer.gap) == ((), 0.0, 0.0, 0.0)
    assert answer.status is Status.OPTIMAL
    with pytest.raises(InfeasibleError, match="raise 'file' to 0"):
        solve(Problem.from_groups([], [Limit("file", -1)]))


def test_no_limits_takes_the_least_loss() -> None:
    answer = solve(Problem.from_groups([Group("a", pair((1, 2.0), (9, 0.5), (5, 0.5)))]))
    assert answer.loss == 0.5
    assert answer.status is Status.OPTIMAL


def test_one_option_that_fits_exactly_and_that_misses_by_one() -> None:
    groups = [Group("a", pair((2**60, 1.0)))]
    assert solve(Problem.from_groups(groups, [Limit("file", 2**60)])).usage[0].slack == 0
    with pytest.raises(InfeasibleError) as caught:
        solve(Problem.from_groups(groups, [Limit("file", 2**60 - 1)]))
    assert caught.value.analysis.changes[0].capacities == {"file": 2**60}


@pytest.mark.parametrize("method", ["auto", "dp", "cp-sat"])
def test_bytes_beyond_what_floats_can_tell_apart(method: str) -> None:
    """Capacity admits one upgrade of 2**53 + 1 but not the other of 2**53 + 2."""
    small = 2**53
    groups = [
        Group("a", pair((0, 1.0), (small + 1, 0.0))),
        Group("b", pair((0, 1.1), (small + 2, 0.0))),
        Group("c", pair((small, 0.0))),
    ]
    answer = solve(Problem.from_groups(groups, [Limit("file", 2 * small + 1)]), method=method, gap=0.0)
    assert answer.picks == (1, 0, 0)
    assert answer.usage[0].used == 2 * small + 1


@pytest.mark.parametrize("method", ["auto", "dp", "lagrangian", "cp-sat"])
def test_losses_of_all_magnitudes(method: str) -> None:
    groups = [
        Group("huge", pair((0, 1e300), (1, 0.0))),
        Group("plain", pair((0, 1.0), (1, 0.0))),
        Group("tiny", pair((0, 1e-300), (1, 0.0))),
    ]
    for capacity, loss in ((0, 1e300), (1, 1.0), (2, 1e-300), (3, 0.0)):
        answer = solve(Problem.from_groups(groups, [Limit("file", capacity)]), method=method)
        assert answer.loss == loss
        assert answer.bound <= loss


def test_fractional_weights_are_exact() -> None:
    """Three experts of which one is read: thirds of bytes have no exact float."""
    groups = [Group(name, pair((10, 1.0), (11, 0.0))) for name in "abc"]
    shares = dict.fromkeys("abc", Fraction(1, 3))
    problem = Problem.from_groups(groups, [Limit("active", Fraction(32, 3), shares)])
    answer = solve(problem, gap=0.0)
    assert answer.loss == 1.0
    assert answer.usage[0].used == Fraction(32, 3)
    assert solve(problem.with_capacity("active", Fraction(31, 3)), gap=0.0).loss == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "'a' has no option"),
        (pair((-1, 1.0)), "at least 0"),
        (pair((2**62, 1.0)), "below 2"),
        (pair((1, -0.5)), "loss of option '1' of group 'a' is -0.5"),
        (pair((1, math.nan)), "must be finite"),
        (pair((1, math.inf)), "must be finite"),
        ([Option(1.5, 1.0)], "must be an integer"),  # type: ignore[arg-type]
        ([Option(True, 1.0)], "must be an integer"),
        ([Option(1, "much")], "must be a number"),  # type: ignore[arg-type]
        ([Option(1, 10**400)], "float can hold"),
    ],
)
def test_options_that_cannot_be_meant(options: list[Option], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Problem.from_groups([Group("a", options)], [Limit("file", 5)])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ([Limit("file", 5), Limit("file", 6)], "two limits are called 'file'"),
        ([Limit("file", 5.5)], "integer or a Fraction"),  # type: ignore[arg-type]
        ([Limit("gpu", 5, ["blk.O"])], "no group 'blk.O'; near it: blk.0"),
        ([Limit("gpu", 5, {"blk.0": -1})], "at least 0"),
        ([Limit("gpu", 5, weights={"blk.0": [1]})], "give one for each of its options"),
        ([Limit("gpu", 5, ["blk.0"], {"blk.0": [1, 2]})], "both members and weights"),
        ([Limit("gpu", 5, weights=np.array([1]))], "one integer >= 0 an option"),
        ([Limit("gpu", 5, {"blk.0": Fraction(2**62 - 2, 2**62 - 1)})], "exceed"),
    ],
)
def test_limits_that_cannot_be_meant(limits: list[Limit], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Problem.from_groups([Group("blk.0", pair((1, 1.0), (2, 0.5)))], limits)


def test_sums_that_leave_64_bits() -> None:
    groups = [Group(str(g), pair((2**61, 1.0))) for g in range(2)]
    with pytest.raises(ProblemError, match="coarser unit"):
        Problem.from_groups(groups)
    with pytest.raises(ProblemError, match="divide them all"):
        Problem.from_groups([Group(str(g), pair((1, 1e304))) for g in range(2)])
    with pytest.raises(ProblemError, match="two groups are called"):
        Problem.from_groups([Group("a", pair((1, 1.0)))] * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "there are: auto, cp-sat"),
        ({"gap": -1.0}, "at least 0"),
        ({"gap": math.nan}, "at least 0"),
        ({"time_limit": -1.0}, "seconds"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        solve(Problem.from_groups([]), **arguments)  # type: ignore[arg-type]


def test_check_refuses_picks_that_are_none() -> None:
    problem = Problem.from_groups([Group("a", pair((1, 1.0)))])
    with pytest.raises(ValueError, match="no option 1"):
        check(problem, [1])
    with pytest.raises(ValueError, match="0 picks"):
        check(problem, [])


def test_arrays_and_objects_make_the_same_problem() -> None:
    groups = [Group("0", pair((3, 1.0), (4, 0.5))), Group("1", pair((5, 0.25)))]
    plain = Problem.from_groups(groups, [Limit("file", 9)])
    flat = Problem.from_arrays(np.array([0, 2, 3]), np.array([3, 4, 5]), [1.0, 0.5, 0.25], [Limit("file", 9)])
    assert solve(plain).picks == solve(flat).picks
    with pytest.raises(ProblemError, match="offsets must go"):
        Problem.from_arrays(np.array([0, 2]), np.array([3, 4, 5]), [1.0, 0.5, 0.25])
    with pytest.raises(ProblemError, match="signed integers"):
        Problem.from_arrays(np.array([0, 1]), np.array([3.0]), [1.0])


def test_a_problem_is_frozen_and_leaves_its_givers_arrays_alone() -> None:
    losses, weights = np.array([1.0, 0.5]), np.array([1, 2])
    limit = Limit("file", 2, weights=weights)
    problem = Problem.from_arrays(np.array([0, 2]), np.array([3, 4]), losses, [limit])
    losses[0], weights[0] = -1.0, -1  # theirs to change
    assert (problem.losses[0], problem.weights[0, 0]) == (1.0, 1)
    for array in (problem.offsets, problem.sizes, problem.losses, problem.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        problem.scales = (2,)  # type: ignore[misc]


def test_changed_problems_share_what_they_can_and_are_checked() -> None:
    problem = Problem.from_groups(
        [Group("a", pair((3, 1.0), (4, 0.5)))], [Limit("file", 9), Limit("gpu", Fraction(1, 2), {"a": Fraction(1, 3)})]
    )
    other = problem.with_capacity("gpu", Fraction(4, 3))
    assert other.choices is problem.choices
    assert other.weights is problem.weights
    assert (problem.capacities, other.capacities) == ((9, 1), (9, 4))
    assert other.limits[1].capacity == Fraction(4, 3)
    alone = problem.only([1], np.array([2.0, 1.0]))
    assert [limit.name for limit in alone.limits] == ["gpu"]
    assert alone.losses.tolist() == [2.0, 1.0]
    assert alone.names == problem.names
    with pytest.raises(ProblemError, match="loss of option '3' of group 'a' is -1"):
        problem.only([0], np.array([-1.0, 0.0]))
    with pytest.raises(ProblemError, match="two limits are called 'gpu'"):
        problem.only([1, 1])
    with pytest.raises(ProblemError, match="integer or a Fraction"):
        problem.with_capacity("file", 1.5)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="one row a limit"):
        replace(problem, scales=())
