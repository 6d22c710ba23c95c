"""Who is on the frontier of size and divergence, with what chance may explain; and results that are kept in a file."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import OutputError
from planner.llama.evaluate.divergence import Divergence
from planner.llama.evaluate.frontier import SURE, difference, standings
from planner.llama.evaluate.results import Compared, Comparison, Original, add_result, kept_comparison
from planner.llama.evaluate.statistics import Estimate, statistics

TOKENS = 50  # of a window


def result(name, size, klds, *, exact=False):
    """One whose tokens in a window have that mean divergence, half of them more and half less."""
    per_token = np.outer(klds, np.tile([0.5, 1.5], TOKENS // 2)).astype(np.float32).ravel()
    count = len(per_token)
    likelihood = np.ones(count, np.float32)
    tops = np.zeros(count, np.int32)
    found = statistics(
        Divergence(likelihood, likelihood, per_token, tops, tops, likelihood, tops), [TOKENS] * len(klds)
    )
    return Compared(name, f"key of {name}", size, 4.0, exact, exact, found, tuple(map(float, klds)))


def noisy(mean, seed, windows=40, spread=0.1):
    """Windows are hard or easy for all models alike; what is a model's own is a tenth of that."""
    common = np.random.default_rng(0).lognormal(0, 0.5, windows)
    own = np.random.default_rng(seed).lognormal(0, spread, windows)
    return mean * common * own / own.mean()


def kinds(*results):
    return {name: stand.kind for name, stand in standings(results).items()}


def test_smaller_and_better_beats():
    every = [result("a", 100, noisy(0.1, 1)), result("b", 120, noisy(0.2, 2)), result("c", 130, noisy(0.05, 3))]
    found = standings(every)
    assert {name: (stand.kind, stand.by) for name, stand in found.items()} == {
        "a": ("frontier", None), "b": ("beaten", "a"), "c": ("frontier", None),
    }  # fmt: skip


def test_pairs_tell_more_than_errors_of_each():
    """A difference of 2 %, which is less than three errors of either, is beyond chance where windows agree."""
    hard = noisy(0.1, 1)
    own = np.random.default_rng(2).lognormal(0, 0.01, len(hard))
    small, large = result("small", 100, hard), result("large", 120, 0.98 * hard * own)
    assert abs(difference(small, large)[0]) < SURE * small.statistics.kld.error
    assert kinds(small, large) == {"small": "frontier", "large": "frontier"}
    assert kinds(replace(small, bytes=130), large)["small"] == "beaten"


def test_what_chance_explains_is_a_tie():
    one, other = result("one", 100, noisy(0.1, 1, spread=0.5)), result("other", 120, noisy(0.1, 2, spread=0.5))
    found = standings([one, other])
    assert found["one"].kind == "frontier"
    assert (found["other"].kind, found["other"].by) == ("tie", "one")
    same = replace(one, name="same")
    assert kinds(one, same) == {"one": "tie", "same": "tie"}


def test_few_windows_are_not_paired():
    klds = noisy(0.1, 1, windows=4)
    one, other = result("one", 100, klds), result("other", 120, klds * 0.99)
    value, error = difference(one, other)
    assert error == pytest.approx(math.hypot(one.statistics.kld.error, other.statistics.kld.error))
    assert value == pytest.approx(one.statistics.kld.value - other.statistics.kld.value)
    assert kinds(one, other)["other"] == "tie"


def test_a_recipe_in_memory_is_not_held_against_a_file():
    file, recipe = result("file", 100, noisy(0.1, 1)), result("recipe", 100, noisy(0.05, 2), exact=True)
    assert kinds(file, recipe) == {"file": "frontier", "recipe": "frontier"}
    worse = replace(
        recipe, name="worse", klds=tuple(noisy(0.3, 3)), statistics=result("x", 1, noisy(0.3, 3)).statistics
    )
    assert kinds(file, worse) == {"file": "frontier", "worse": "beaten"}


def test_infinite_divergences():
    broken, whole = result("broken", 100, [math.inf] * 10), result("whole", 120, noisy(0.1, 1))
    assert kinds(broken, whole) == {"broken": "frontier", "whole": "frontier"}
    assert kinds(replace(broken, bytes=120), whole)["broken"] == "beaten"
    assert kinds(broken, replace(broken, name="other")) == {"broken": "tie", "other": "tie"}


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0.001, 1)), min_size=1, max_size=8))
def test_without_noise_it_is_the_pareto_frontier(pairs):
    """By a look at every pair."""
    every = [result(str(number), size, [kld] * 10) for number, (size, kld) in enumerate(pairs)]
    found = kinds(*every)
    for one in every:
        others = [other for other in every if other is not one and other.bytes <= one.bytes]
        beaten = any(other.klds < one.klds for other in others)
        tied = any(other.klds == one.klds for other in others)
        assert found[one.name] == ("beaten" if beaten else "tie" if tied else "frontier")


def comparison():
    return Comparison(Original("base.gguf", 1000, 16.0, Estimate(10.0, 0.5)), 512, 40)


def test_results_come_back_as_they_were(tmp_path):
    path = tmp_path / "compare.json"
    one, two = result("one", 100, noisy(0.1, 1)), result("two", 90, [math.inf] * 40, exact=True)
    assert kept_comparison(path, "key") is None
    add_result(path, "key", comparison(), one)
    grown = add_result(path, "key", comparison(), two)
    add_result(path, "other", replace(comparison(), original=Original("x.kld", None, None, Estimate(1.0, 0.0))), one)
    assert kept_comparison(path, "key") == grown
    assert grown.results == {"one": one, "two": two}
    assert [each.name for each in grown.by_size()] == ["two", "one"]
    assert kept_comparison(path, "other").original.bytes is None
    assert kept_comparison(path, "third") is None
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = replace(one, key="another")
    assert add_result(path, "key", comparison(), again).results["one"] == again
    assert list(add_result(path, "key", comparison(), replace(two, name="new"), "two").results) == ["one", "new"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "not json", '{"compare_version": 2}', '{"compare_version": 2, "comparisons": {"a": {}}}',
     "[" * 100_000, '{"compare_version": 1, "comparisons": {}}', '{"format_version": 1, "tensors": []}'],
)  # fmt: skip
def test_what_is_no_file_of_results_stays(tmp_path, text):
    path = tmp_path / "compare.json"
    path.write_text(text)
    with pytest.raises(OutputError, match="--results"):
        kept_comparison(path, "key")
    with pytest.raises(OutputError, match=r"compare\.json"):
        add_result(path, "key", comparison(), result("one", 100, [0.1] * 10))
    assert path.read_text() == text
