"""What every method promises, against all choices of small problems."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solvers import (
    METHODS,
    Group,
    InfeasibleError,
    Limit,
    Method,
    Option,
    Problem,
    ProblemError,
    Solution,
    Status,
    check,
    methods,
    solve,
)
from solvers.methods import over_core
from solvers.task import Found, Task
from tests.solvers.oracle import best, problems, single_steps_that_help


def examples(method: Method) -> int:
    """How many problems to try a method on: the default on most, what starts slowly on fewer."""
    if method.loads is not None:
        return 50
    return 600 if method.name == "auto" else 300


def keeps_its_promises(problem: Problem, answer: Solution, gap: float) -> None:
    truth = best(problem)
    if answer.picks is None:
        assert answer.loss == float("inf")
        return
    checked = check(problem, answer.picks)
    assert checked.feasible
    assert truth is not None
    assert answer.loss == float(checked.loss)
    assert answer.bytes == checked.bytes
    assert Fraction(answer.bound) <= truth
    assert not single_steps_that_help(problem, answer.picks)
    rounding = 1 + Fraction(1, 10**11)
    if answer.status is Status.OPTIMAL:
        assert checked.loss <= truth * rounding
    if answer.status is Status.WITHIN_GAP:
        assert answer.gap <= gap
    assert checked.loss * (1 - Fraction(answer.gap)) <= truth * rounding
    for usage, used, scale, limit in zip(answer.usage, checked.used, problem.scales, problem.limits, strict=True):
        assert usage.used * scale == used
        assert usage.slack >= 0
        assert usage.name == limit.name


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_never_infeasible_never_worse_than_stated(method: Method) -> None:
    unchecked = list(HealthCheck)

    @settings(max_examples=examples(method), deadline=None, derandomize=True, suppress_health_check=unchecked)
    @given(problems(limits=4 if method.several_limits else 1), st.sampled_from([0.0, 1e-6, 0.1]))
    def holds(problem: Problem, gap: float) -> None:
        try:
            answer = solve(problem, method=method.name, gap=gap, time_limit=20.0)
        except InfeasibleError:
            assert best(problem) is None
            return
        keeps_its_promises(problem, answer, gap)
        if method.proves:
            assert answer.status in (Status.OPTIMAL, Status.WITHIN_GAP)
            assert answer.picks is not None

    holds()


@settings(max_examples=200, deadline=None)
@given(problems(least=1))
def test_exact_is_never_worse_than_greedy(problem: Problem) -> None:
    try:
        exact, greedy = solve(problem, gap=0.0), solve(problem, method="lagrangian")
    except InfeasibleError:
        return
    assert exact.loss <= greedy.loss


@settings(max_examples=150, deadline=None)
@given(problems(least=1), st.integers(0, 2**40))
def test_more_room_never_loses_more(problem: Problem, more: int) -> None:
    first = problem.limits[0]
    try:
        tight = solve(problem, gap=0.0)
    except InfeasibleError:
        return
    loose = solve(problem.with_capacity(first.name, first.capacity + more), gap=0.0)
    assert loose.loss <= tight.loss * (1 + 1e-12)


@settings(max_examples=300, deadline=None)
@given(problems(least=1))
def test_infeasible_problems_say_why_and_the_cures_work(problem: Problem) -> None:
    try:
        solve(problem)
    except InfeasibleError as error:
        analysis = error.analysis
    else:
        assert best(problem) is not None
        return
    conflict = [problem.limit(name) for name in analysis.limits]
    assert best(problem.only(conflict)) is None
    for i in conflict:
        assert best(problem.only([k for k in conflict if k != i])) is not None
    assert analysis.changes
    for change in analysis.changes:
        cured = problem
        for name, capacity in change.capacities.items():
            cured = cured.with_capacity(name, capacity)
        assert best(cured) is not None
        if change.least:
            for name, capacity in change.capacities.items():
                smaller = capacity - Fraction(1, problem.scales[problem.limit(name)])
                assert best(cured.with_capacity(name, smaller)) is None


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_answer(method: str) -> None:
    from benchmarks.solvers.problems import real

    problem = real("Qwen3.5-0.8B", 3.3)
    first, second = (solve(problem, method=method, gap=1e-4, seed=3) for _ in range(2))
    assert (first.picks, first.bound, first.status) == (second.picks, second.bound, second.status)


def test_methods_agree_on_a_real_model_with_three_limits() -> None:
    """No method's bound is above another's answer: each is a second opinion on the others' proofs."""
    from benchmarks.solvers.problems import devices

    problem = devices("Qwen3.5-0.8B", 4.5)
    answers = {method: solve(problem, method=method, gap=1e-4, time_limit=20.0) for method in METHODS}
    best_loss = min(answer.loss for answer in answers.values())
    for answer in answers.values():
        assert answer.picks is not None
        assert answer.bound <= best_loss
    assert {answers[method].method for method in ("dp", "cp-sat", "milp")} == {"dp", "cp-sat", "milp"}


def every_choice(task: Task) -> Found:
    """A method in a few lines: the least excess over the core's bound of all choices of its options."""
    core, best, least = task.core, None, float("inf")
    for picks in itertools.product(*(range(len(item.options)) for item in core.groups)):
        chosen = list(zip(core.groups, picks, strict=True))
        slack = core.slack - sum(item.weight[:, k] for item, k in chosen)
        excess = sum(item.cost[k] for item, k in chosen) + core.bound.prices @ slack
        if (slack >= 0).all() and excess < least:
            best, least = {item.group: int(item.options[k]) for item, k in chosen}, float(excess)
    return Found(best, least - core.error - 1e-12, best is not None)


def test_a_new_method_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Method("brute", "all choices", (over_core("brute", every_choice),), proves=True, several_limits=False)
    monkeypatch.setattr(methods, "METHODS", {**METHODS, new.name: new})
    groups = [
        Group("a", [Option(0, 9.0), Option(11, 3.0), Option(20, 0.0)]),
        Group("b", [Option(0, 8.0), Option(13, 0.0)]),
        Group("c", [Option(0, 7.0), Option(12, 0.0)]),
    ]
    problem = Problem.from_groups(groups, [Limit("file", 23), Limit("gpu", 12, ["c"])])
    answer = solve(problem.only([0]), method="brute", gap=0.0)
    assert answer.loss == best(problem.only([0])) == 11.0
    assert (answer.status, answer.method) == (Status.OPTIMAL, "brute")
    assert solve(problem.only([0]), method="lagrangian").loss > 11.0
    with pytest.raises(ProblemError, match="'brute' takes one limit, and there are 2; these take several: auto"):
        solve(problem, method="brute")
    with pytest.raises(ProblemError, match="there are: auto, brute, cp-sat"):
        solve(problem, method="force")
