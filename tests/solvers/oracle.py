"""Every choice of a small problem, enumerated; and strategies that make small problems of every kind."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from random import Random

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


# Losses of an option of some size. Where all save about the same for a byte, prices alone decide little
LOSSES: dict[str, Callable[[Random, int], float]] = {
    "any": lambda rng, size: rng.choice([0.0, 1.0, rng.random(), rng.random(), rng.random()]),
    "whole": lambda rng, size: float(rng.randint(0, 4)),
    "edges": lambda rng, size: rng.choice([0.0, 1e-300, 1e-5, 1.0, 1e300]),
    "falling": lambda rng, size: float(max(0, 1000 - size % 2**53 + rng.randint(0, 20))),
}
SIZES: dict[str, Callable[[Random], int]] = {
    "any": lambda rng: rng.choice([0, rng.randint(0, 1000), rng.randint(0, 1000), rng.randint(0, 1000)]),
    "few": lambda rng: rng.randint(0, 5),
    "huge": lambda rng: 2**53 + rng.randint(0, 99),
}


@st.composite
def problems(draw: st.DrawFn, limits: int = 4, least: int = 0) -> Problem:
    """Up to 6 groups of up to 4 options (one: a pin) under `least` to `limits` limits, feasible or nearly so.

    Hypothesis draws the kind of problem, so that failures shrink; the numbers come from a seed, which takes a tenth of
    the time that drawing each of them would.
    """
    size, loss = SIZES[draw(st.sampled_from(sorted(SIZES)))], LOSSES[draw(st.sampled_from(sorted(LOSSES)))]
    widest, count = draw(st.sampled_from([1, 2, 3, 4, 4])), draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 5, 6, 6]))
    bounds = draw(st.sampled_from(range(least, limits + 1)))
    rng = Random(draw(st.integers(0, 2**32)))

    def options() -> list[Option]:
        sizes = [size(rng) for _ in range(rng.randint(1, widest))]
        return tied([Option(weight, loss(rng, weight)) for weight in sizes], rng.randint(1, 3))

    groups = [Group(str(g), options()) for g in range(count)]
    return Problem.from_groups(groups, [limit_over(groups, f"limit {i}", rng) for i in range(bounds)])


def tied(options: list[Option], tensors: int) -> list[Option]:
    """The options of so many like tensors that must take the same format."""
    return [Option(option.bytes * tensors, option.loss * tensors) for option in options]


def limit_over(groups: list[Group], name: str, rng: Random) -> Limit:
    """A limit of any kind over `groups`, now and then just below what can be met."""
    some = [group for group in groups if rng.random() < 0.6]
    limit = rng.choice(
        [
            Limit(name, 0),
            Limit(name, 0, members={group.name for group in some}),
            Limit(name, 0, members={g.name: rng.choice([0, Fraction(1, 2), Fraction(3, 8), 1]) for g in some}),
            Limit(name, 0, weights={g.name: [rng.randint(0, 20) for _ in g.options] for g in groups}),
        ]
    )
    low, high = Problem.from_groups(groups, [limit]).extremes(name)
    capacity = low + (high - low) * Fraction(rng.randint(0, 20), 20) - rng.choice([0, 0, 0, 0, 0, 1])
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
