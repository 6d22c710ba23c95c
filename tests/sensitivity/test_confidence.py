"""How sure `diff` is of a gain."""

from __future__ import annotations

import pytest

from planner.sensitivity import likely_ratio


def test_a_gain_is_likely_about_what_is_predicted():
    low, high = likely_ratio("structure", 0.6)
    assert low < 0.6 < high < 1
    tighter = likely_ratio("measured", 0.6)
    assert low < tighter[0] < tighter[1] < high
    in_nats = likely_ratio("structure", 0.6, nats=True)
    assert low < in_nats[0] < 0.6 < in_nats[1] < high
    assert likely_ratio("measured", 0.6, nats=True) == tighter


@pytest.mark.parametrize("source", ["uniform", "prior", "structure+prior", "none"])
def test_nothing_is_said_of_what_was_not_checked(source):
    assert likely_ratio(source, 0.6) is None
