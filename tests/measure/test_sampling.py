"""Which rows are drawn: nested, unbiased, in the end all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.measure import sampling
from planner.measure.sampling import FIRST_DRAWS, stages

FAST = settings(max_examples=60, deadline=None)


@st.composite
def guesses(draw, most=3000):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, most))
    guess = rng.lognormal(0, draw(st.sampled_from([0, 1, 4])), count)
    guess[rng.random(count) < draw(st.sampled_from([0, 0.3, 0.99]))] = 0
    massive = np.where(rng.random(count) < draw(st.sampled_from([0, 0.01, 1])), rng.random(count), 0.0)
    return guess, massive


@FAST
@given(guesses(), st.integers(0, 99))
def test_stages_nest_double_and_end_with_all(pair, seed):
    guess, massive = pair
    drawn, seen = 0, set()
    steps = list(stages(guess, massive, seed, "blk.0.ffn_up.weight"))
    for number, step in enumerate(steps[:-1]):
        assert not step.exhaustive
        assert np.array_equal(step.rows, np.unique(step.rows))
        assert step.draws.min() >= 1
        drawn += int(step.draws.sum())
        assert drawn == FIRST_DRAWS * 2**number
        seen |= set(step.rows.tolist())
    last = steps[-1]
    assert last.exhaustive
    assert np.array_equal(last.weights, np.ones(len(last.rows)))
    assert len(last.rows) == len(set(last.rows.tolist()))
    assert seen <= set(last.rows.tolist())
    # every row that may have an error is in the last stage
    energy = guess + massive
    expected = set(np.flatnonzero(energy).tolist()) if energy.any() else set(range(len(guess)))
    if guess.any() or not massive.any():
        assert set(last.rows.tolist()) == expected
    else:
        assert set(last.rows.tolist()) >= expected


@FAST
@given(guesses(), st.integers(0, 99))
def test_all_draws_so_far_are_one_systematic_sample(pair, seed):
    """After any stage the draws are FIRST_DRAWS · 2^k equidistant points of the cumulated probability."""
    guess, massive = pair
    counts = np.zeros(len(guess), dtype=np.int64)
    for step in stages(guess, massive, seed, "x"):
        if step.exhaustive:
            return
        counts[step.rows] += step.draws
        total = int(counts.sum())
        expected = np.zeros(len(guess))
        expected[step.rows] = 1 / step.weights  # probabilities of those just drawn
        drawn = step.rows
        # a systematic sample gives each row its share of the draws, rounded down or up
        assert (np.abs(counts[drawn] - total * expected[drawn]) < 1 + 1e-6).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_estimates_are_right_on_average(spread, stage, monkeypatch):
    """The mean of the estimate over equidistant offsets is the exact sum."""
    rng = np.random.default_rng(1)
    guess = rng.lognormal(0, spread, 700)
    errors = guess * rng.lognormal(0, 0.5, 700)
    massive = np.where(rng.random(700) < 0.02, 5.0, 0.0)
    offsets = 2000
    estimates = []
    for number in range(offsets):
        monkeypatch.setattr(sampling, "_uniform", lambda seed, name, number=number: (number + 0.5) / offsets)
        total, draws = 0.0, 0
        for index, step in enumerate(stages(guess, massive, 0, "x")):
            if step.exhaustive:
                pytest.skip("so many stages there are not")
            total += float((errors[step.rows] * step.weights * step.draws).sum())
            draws += int(step.draws.sum())
            if index == stage:
                break
        estimates.append(total / draws)
    assert np.mean(estimates) == pytest.approx(errors.sum(), rel=2e-3)
    assert min(estimates) < errors.sum() < max(estimates)


def test_draws_depend_on_seed_and_name_alone():
    guess = np.random.default_rng(0).lognormal(0, 1, 5000)
    none = np.zeros(5000)

    def first(seed, name):
        return next(iter(stages(guess, none, seed, name))).rows.tolist()

    assert first(0, "a") == first(0, "a")
    assert first(0, "a") != first(0, "b")
    assert first(0, "a") != first(1, "a")
    # another machine, another year, the same rows
    assert sampling._uniform(0, "output.weight") == 0.21231104317176985
    assert min(sampling._uniform(seed, "x") for seed in range(99)) >= 0
    assert max(sampling._uniform(seed, "x") for seed in range(99)) < 1


def test_rows_too_unequal_to_be_drawn_do_not_go_on_for_ever():
    guess = 10.0 ** -np.arange(300)
    *before, last = stages(guess, np.zeros(300), 0, "x")
    assert last.exhaustive
    assert len(last.rows) == 300
    assert sum(int(step.draws.sum()) for step in before) <= 32 * 300


def test_no_heavy_row_is_missed():
    guess = np.ones(100_000)
    guess[77_777] = 1e4  # a tenth of the whole
    massive = np.zeros(100_000)
    massive[[5, 99_999]] = 1.0
    step = next(iter(stages(guess, massive, 0, "x")))
    assert {77_777, 5, 99_999} <= set(step.rows.tolist())
    assert step.draws[step.rows == 5] >= FIRST_DRAWS // 4 - 1  # half of the draws go to massive channels
