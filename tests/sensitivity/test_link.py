"""From sums of losses to KL divergence: points are met, order is kept, and doubt grows away from what was seen."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from planner.sensitivity import Point, fit_link

losses = st.floats(1e-6, 10.0)


@given(st.lists(losses, min_size=3, max_size=6, unique=True), st.floats(0.7, 1.4))
def test_points_on_a_curve_are_met(seen, k):
    link = fit_link([Point(loss, 1e-4 + k * loss / (1 + k * loss / 2.0), 0.0) for loss in seen])
    for loss in seen:
        true = 1e-4 + k * loss / (1 + k * loss / 2.0)
        found = link.predict(loss)
        assert abs(math.log(found.kld / true)) < 0.15
        assert found.low < found.kld < found.high


@given(losses, losses)
def test_more_loss_is_more_divergence(one, other):
    link = fit_link([Point(0.001, 0.0012, 1e-5), Point(0.1, 0.09, 1e-3)])
    low, high = sorted((one, other))
    assert link.predict(low).kld <= link.predict(high).kld


def test_without_points_it_is_the_sum_with_much_doubt():
    nothing = fit_link([])
    assert nothing.points == 0
    assert 0.7 < nothing.predict(0.01).kld / 0.01 < 1.4
    some = fit_link([Point(0.01, 0.012, 1e-5), Point(0.02, 0.024, 1e-5)])
    wide, narrow = nothing.predict(0.01), some.predict(0.01)
    assert wide.high / wide.low > narrow.high / narrow.low > 1


def test_a_floor_is_learnt_from_files_that_hardly_lose():
    link = fit_link([Point(1e-5, 1e-3, 1e-5), Point(1e-4, 1.1e-3, 1e-5), Point(0.01, 0.011, 1e-4)])
    assert 7e-4 < link.predict(1e-6).kld < 1.3e-3


def test_points_that_mean_nothing_are_left_out():
    link = fit_link([Point(0.0, 0.1, 0.0), Point(0.01, 0.0, 0.0), Point(0.01, -1e-9, 1e-6)])
    assert link.points == 0


@given(st.floats(1e-7, 100.0), st.floats(0.5, 1.5))
def test_the_inverse_is_one(loss, k):
    link = fit_link([Point(0.001, k * 0.0012, 1e-5), Point(0.1, k * 0.09, 1e-3)])
    back = link.loss_at(link.predict(loss).kld)
    assert back is not None
    assert math.isclose(back, loss, rel_tol=1e-5)


def test_divergences_that_no_loss_has():
    link = fit_link([Point(1e-5, 1e-3, 1e-5), Point(0.01, 0.011, 1e-4)])
    floor = link.predict(0.0).kld
    assert link.loss_at(floor * 0.99) is None
    assert link.loss_at(100.0) == math.inf  # nothing gets so bad
