"""What passes say of sensitivities: exact ones are believed, noisy ones hardly, and what was not measured follows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.sensitivity import (
    IN_NATS,
    UP_TO_SCALE,
    ErrorParts,
    Observation,
    TensorSensitivity,
    factored,
    measured_sensitivities,
    prior_covariance,
    select_passes,
)

ROLES = ("attn_q", "attn_v", "ffn_down")
NAMES = [f"blk.{block}.{role}.weight" for block in range(4) for role in ROLES] + ["output.weight"]
REFERENCE = {
    name: TensorSensitivity(ErrorParts(1.0 + number, 1.0 + number, 0.0), "structure")
    for number, name in enumerate(NAMES)
}
truths = st.lists(st.floats(-1.0, 1.0), min_size=len(NAMES), max_size=len(NAMES))


def observed(truth, names, stderr=0.0, error=0.01):
    """A pass over `names`, all with the same relative error, where the reference is off by exp(truth)."""
    losses = {name: REFERENCE[name].loss(ErrorParts(error, 0.0, 0.0)) for name in names}
    kld = sum(loss * math.exp(truth[name]) for name, loss in losses.items())
    return Observation(losses, kld, stderr * kld)


def corrections(passes):
    found = measured_sensitivities(REFERENCE, passes)
    return {name: math.log(found[name].per_unit.variance / REFERENCE[name].per_unit.variance) for name in NAMES}


@given(truths)
def test_exact_passes_over_single_tensors_are_believed(deltas):
    truth = dict(zip(NAMES, (delta - 2 for delta in deltas), strict=True))
    found = corrections([observed(truth, [name]) for name in NAMES])
    # what remains is the doubt that a sensitivity is the same for every size of error
    assert all(abs(found[name] - truth[name]) < 0.06 for name in NAMES)


@given(truths)
def test_each_tensor_moves_towards_what_was_measured_and_not_beyond(deltas):
    truth = dict(zip(NAMES, (delta - 2 for delta in deltas), strict=True))
    sure = corrections([observed(truth, [name], stderr=0.01) for name in NAMES])
    vague = corrections([observed(truth, [name], stderr=0.6) for name in NAMES])
    middle = np.mean(list(truth.values()))
    assert np.ptp(list(vague.values())) <= np.ptp(list(sure.values())) + 0.01
    assert abs(np.mean(list(vague.values())) - middle) < 0.3


def test_what_was_not_measured_follows_its_block_its_role_and_the_model():
    truth = dict.fromkeys(NAMES, -1.0) | {"blk.1.attn_q.weight": 0.5}
    seen = [observed(truth, [name]) for name in ("blk.1.attn_q.weight", "blk.0.attn_v.weight", "output.weight")]
    found = corrections(seen)
    same_role, same_block, neither = "blk.2.attn_q.weight", "blk.1.ffn_down.weight", "blk.3.ffn_down.weight"
    assert found[same_role] > found[neither]
    assert found[same_block] > found[neither]
    assert -1.2 < found[neither] < 0.0  # as the model on the whole


def test_blocks_and_roles_together_tell_tensors_apart():
    truth = {name: (0.25 if "attn_q" in name else 0.0) + (0.4 if "blk.2" in name else 0.0) - 1.0 for name in NAMES}
    found = corrections([observed(truth, members) for _, members in factored(NAMES)])
    assert all(abs(found[name] - truth[name]) < 0.15 for name in NAMES)
    assert max(found, key=lambda name: found[name]) == "blk.2.attn_q.weight"


def test_components_keep_their_proportions():
    reference = {"blk.0.ffn_down.weight": TensorSensitivity(ErrorParts(1.0, 2.0, 3.0), "structure")}
    found = measured_sensitivities(reference, [Observation({"blk.0.ffn_down.weight": 0.1}, 0.05, 0.001)])
    entry = found["blk.0.ffn_down.weight"]
    assert entry.source == "measured"
    unit = entry.per_unit
    assert (unit.mean / unit.variance, unit.massive / unit.variance) == pytest.approx((2.0, 3.0))


@pytest.mark.parametrize("kld", [0.0, -1e-7])
def test_a_divergence_below_its_noise_says_small_and_no_more(kld):
    found = measured_sensitivities(
        REFERENCE,
        [
            Observation({NAMES[0]: 0.01}, kld, 1e-6),
            *(observed(dict.fromkeys(NAMES, -1.0), [name]) for name in NAMES[1:]),
        ],
    )
    assert 0 < found[NAMES[0]].per_unit.variance < REFERENCE[NAMES[0]].per_unit.variance
    assert all(math.isfinite(entry.per_unit.variance) and entry.log_std >= 0 for entry in found.values())


def test_a_reference_in_nats_is_trusted_more():
    name, off = NAMES[1], 0.6
    one = [observed(dict.fromkeys(NAMES, off), [name], stderr=0.2)]
    unit = REFERENCE[name].per_unit.variance
    moved, further = (
        math.log(measured_sensitivities(REFERENCE, one, spreads)[name].per_unit.variance / unit)
        for spreads in (IN_NATS, UP_TO_SCALE)
    )
    assert 0.5 * off < moved < further
    unmoved = measured_sensitivities(REFERENCE, [], IN_NATS)
    assert all(unmoved[each].per_unit == REFERENCE[each].per_unit for each in NAMES)


def test_measuring_makes_surer():
    before = {entry.log_std for entry in measured_sensitivities(REFERENCE, []).values()}
    passes = [observed(dict.fromkeys(NAMES, 0.0), [name], stderr=0.05) for name in NAMES]
    assert max(entry.log_std for entry in measured_sensitivities(REFERENCE, passes).values()) < min(before) / 3


def test_factored_covers_everything_once_by_block_and_once_by_role():
    groups = dict(factored(NAMES))
    assert groups["output.weight"] == ("output.weight",)
    blocks = [name for label, members in groups.items() if label.startswith("blk.") for name in members]
    assert sorted(blocks) == sorted(NAMES[:-1])
    assert sorted(name for role in ROLES for name in groups[role]) == sorted(NAMES[:-1])


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_most_telling_passes_are_different_and_the_first_are_a_beginning_of_more(count, rng):
    elements = {name: rng.randint(1, 1000) for name in NAMES}
    covariance = prior_covariance(NAMES, dict.fromkeys(NAMES, True))
    chosen = select_passes(NAMES, covariance, elements, count)
    assert len({members for _, members in chosen}) == len(chosen) <= count
    assert chosen[0] == ("output.weight", ("output.weight",))
    assert select_passes(NAMES, covariance, elements, count + 1)[: len(chosen)] == chosen


def test_large_tensors_are_measured_alone_before_small_ones():
    elements = {name: 10_000 if "ffn_down" in name else 10 for name in NAMES}
    covariance = prior_covariance(NAMES, dict.fromkeys(NAMES, True))
    alone = [members[0] for _, members in select_passes(NAMES, covariance, elements, 12) if len(members) == 1]
    assert sum("ffn_down" in name for name in alone[1:]) == 4 == len(alone[1:5])
