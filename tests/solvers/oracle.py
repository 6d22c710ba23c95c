"""Every choice of a small problem, enumerated; and strategies that make small problems of every kind."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from solvers import Group, Limit, Option, Problem, check


def best(problem: Problem) -> Fraction | None:
    """The exact least loss, or `None` if nothing satisfies the limits."""
    counts = np.diff(problem.offsets)
    picks = np.indices(counts).reshape(len(problem), -1) if len(problem) else np.zeros((0, 1), int)
    fits = np.ones(picks.shape[1], bool)
    flat = picks + problem.offsets[:-1, None]
    for row, capacity in zip(problem.weights, problem.capacities, strict=True):
        fits &= row[flat].sum(axis=0) <= capacity
    losses = problem.losses[flat].sum(axis=0)
    if not fits.any():
        return None
    near = np.flatnonzero(fits & (losses <= losses[fits].min() * (1 + 1e-9)))[:50]
    return min(check(problem, picks[:, k].tolist()).loss for k in near)


LOSSES = {
    "any": st.floats(0.0, 1.0),
    "whole": st.integers(0, 4).map(float),
    "edges": st.sampled_from([0.0, 1e-300, 1e-5, 1.0, 1e300]),
}
SIZES = {"any": st.integers(0, 1000), "few": st.integers(0, 5), "huge": st.integers(2**53, 2**53 + 99)}


@st.composite
def problems(draw: st.DrawFn, limits: int = 4, least: int = 0) -> Problem:
    """Up to 6 groups of up to 4 options (one: a pin) under `least` to `limits` limits, feasible or nearly so."""
    size, loss = SIZES[draw(st.sampled_from(sorted(SIZES)))], LOSSES[draw(st.sampled_from(sorted(LOSSES)))]
    options = st.lists(st.builds(Option, size, loss), min_size=1, max_size=4)
    groups = [Group(str(g), tied(draw(options), draw(st.integers(1, 3)))) for g in range(draw(st.integers(0, 6)))]
    drawn = [draw(limit_over(groups, f"limit {i}")) for i in range(draw(st.integers(least, limits)))]
    return Problem(groups, drawn)


def tied(options: list[Option], tensors: int) -> list[Option]:
    """The options of so many like tensors that must take the same format."""
    return [Option(option.bytes * tensors, option.loss * tensors) for option in options]


@st.composite
def limit_over(draw: st.DrawFn, groups: list[Group], name: str) -> Limit:
    names = [group.name for group in groups]
    shares = st.sampled_from([0, Fraction(1, 2), Fraction(3, 8), 1])
    weights = {g.name: st.lists(st.integers(0, 20), min_size=len(g.options), max_size=len(g.options)) for g in groups}
    kind = draw(st.integers(0, 3))
    limit = (
        Limit(name, 0)
        if kind == 0 or not names
        else Limit(name, 0, members=draw(st.sets(st.sampled_from(names))))
        if kind == 1
        else Limit(name, 0, members=draw(st.dictionaries(st.sampled_from(names), shares)))
        if kind == 2
        else Limit(name, 0, weights=draw(st.fixed_dictionaries(weights)))
    )
    low, high = Problem(groups, [limit]).extremes(name)
    share = draw(st.fractions(0, 1, max_denominator=20))
    capacity = low + (high - low) * share - draw(st.sampled_from([0, 0, 0, 0, 0, 1]))
    return Limit(name, capacity, limit.members, limit.weights)


def single_steps_that_help(problem: Problem, picks: tuple[int, ...]) -> list[tuple[int, int]]:
    """(group, option) of every change of one group that lowers the loss and holds the limits. Slow and plain."""
    found = []
    for g in range(len(problem)):
        for j, option in enumerate(problem.options(g)):
            if option.loss < problem.option(g, picks[g]).loss:
                trial = [*picks[:g], j, *picks[g + 1 :]]
                if check(problem, trial).feasible:
                    found.append((g, j))
    return found
