"""Which rows are drawn: nested, unbiased, in the end all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.measure import sampling
from planner.measure.sampling import first_draws, stages

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
@given(guesses(), st.integers(0, 99), st.sampled_from([16, 64]))
def test_stages_nest_double_and_end_with_all(pair, seed, first):
    guess, massive = pair
    seen, before = set(), np.zeros(0)
    *steps, last = stages([guess], massive, seed, "blk.0.ffn_up.weight", first)
    energy = guess + massive
    expected = set(np.flatnonzero(energy).tolist()) if energy.any() else set(range(len(guess)))
    for number, step in enumerate(steps):
        assert not step.exhaustive
        assert len(step.rows) == first * 2**number
        assert np.array_equal(step.rows, np.sort(step.rows))
        assert not np.setdiff1d(before, step.rows).size  # earlier draws are kept
        assert np.array_equal(step.fresh, np.unique(step.fresh))
        assert not seen & set(step.fresh.tolist())  # no row is measured twice
        seen |= set(step.fresh.tolist())
        assert seen == set(step.rows.tolist())
        assert step.share <= 0.5
        if guess.any() or not massive.any():
            assert step.share == pytest.approx(len(seen) / len(expected))
        before = step.rows
    assert last.exhaustive
    assert np.array_equal(last.weights, np.ones(len(last.rows)))
    assert seen | set(last.fresh.tolist()) == set(last.rows.tolist())
    assert len(seen) + len(last.fresh) == len(last.rows)
    # every row that may have an error is in the last stage
    if guess.any() or not massive.any():
        assert set(last.rows.tolist()) == expected
    else:
        assert set(last.rows.tolist()) >= expected


@FAST
@given(guesses(), st.integers(0, 99))
def test_all_draws_so_far_are_one_systematic_sample(pair, seed):
    """After any stage the draws are equidistant points of the cumulated probability."""
    guess, massive = pair
    for step in stages([guess], massive, seed, "x", 64):
        if step.exhaustive:
            return
        rows, where, counts = np.unique(step.rows, return_index=True, return_counts=True)
        expected = len(step.rows) / step.weights[where]
        # a systematic sample gives each row its share of the draws, rounded down or up
        assert (np.abs(counts - expected) < 1 + 1e-6).all(), rows


def test_the_first_draws_go_with_the_root_of_the_rows():
    assert [first_draws(256, formats) for formats in (1, 2, 3, 4, 19)] == [64, 32, 32, 16, 16]
    assert [first_draws(rows, 10) for rows in (1, 1024, 1025, 4096, 150_000)] == [16, 16, 32, 32, 256]


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
        for index, step in enumerate(stages([guess], massive, 0, "x", 64)):
            if step.exhaustive:
                pytest.skip("so many stages there are not")
            if index == stage:
                estimates.append(float((errors[step.rows] * step.weights).mean()))
                break
    assert np.mean(estimates) == pytest.approx(errors.sum(), rel=2e-3)
    assert min(estimates) < errors.sum() < max(estimates)


def test_draws_depend_on_seed_and_name_alone():
    guess = np.random.default_rng(0).lognormal(0, 1, 5000)
    none = np.zeros(5000)

    def first(seed, name):
        return next(iter(stages([guess], none, seed, name, 64))).rows.tolist()

    assert first(0, "a") == first(0, "a")
    assert first(0, "a") != first(0, "b")
    assert first(0, "a") != first(1, "a")
    # another machine, another year, the same rows
    assert sampling._uniform(0, "output.weight") == 0.21231104317176985
    assert min(sampling._uniform(seed, "x") for seed in range(99)) >= 0
    assert max(sampling._uniform(seed, "x") for seed in range(99)) < 1


def test_rows_too_unequal_to_be_drawn_do_not_go_on_for_ever():
    guess = 10.0 ** -np.arange(300)
    *before, last = stages([guess], np.zeros(300), 0, "x", 64)
    assert last.exhaustive
    assert len(last.rows) == 300
    assert len(before[-1].rows) <= 32 * 300


def test_no_heavy_row_is_missed():
    guess = np.ones(100_000)
    guess[77_777] = 1e4  # a tenth of the whole
    massive = np.zeros(100_000)
    massive[[5, 99_999]] = 1.0
    step = next(iter(stages([guess], massive, 0, "x", 64)))
    assert {77_777, 5, 99_999} <= set(step.rows.tolist())
    assert np.count_nonzero(step.rows == 5) >= 64 // 4 - 1  # half of the draws go to massive channels
