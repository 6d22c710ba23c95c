"""Moments of activations, normed channels and logits against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from planner.gguf import open_model
from planner.measure.activation_moments import (
    ACTIVATIONS,
    activation_moments,
    logit_variance,
    norm_scales,
    rotary_pairs,
)
from planner.measure.anatomy import read_anatomy
from tests.models import dense


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2"])
def test_moments_of_activations_against_simulation(activation):
    mean, var = (x.reshape(-1) for x in np.meshgrid([-2.0, -0.3, 0.0, 0.5, 3.0], [0.01, 0.5, 4.0]))
    value, slope = activation_moments(mean, var, activation)
    draws = np.random.default_rng(0).standard_normal(400_000)
    for index, (m, v) in enumerate(zip(mean, var, strict=True)):
        act, derivative = ACTIVATIONS[activation](m + np.sqrt(v) * draws)
        assert value[index] == pytest.approx(np.square(act).mean(), rel=0.04, abs=1e-4)
        assert slope[index] == pytest.approx(np.square(derivative).mean(), rel=0.04, abs=1e-4)


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2"])
def test_slopes_are_derivatives(activation):
    g, step = np.linspace(-5, 5, 101) + 1e-3, 1e-5
    act = ACTIVATIONS[activation]
    numeric = (act(g + step)[0] - act(g - step)[0]) / (2 * step)
    assert act(g)[1] == pytest.approx(numeric, abs=1e-4)


def test_activations_are_the_usual_ones():
    one = np.array([1.0, -1.0])
    assert ACTIVATIONS["silu"](one)[0] == pytest.approx([0.731059, -0.268941], abs=1e-5)
    assert ACTIVATIONS["gelu"](one)[0] == pytest.approx([0.841192, -0.158808], abs=1e-5)
    assert ACTIVATIONS["relu2"](2 * one)[0].tolist() == [4, 0]


def test_channels_that_rotate_together():
    assert rotary_pairs(8, neighbours=True).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert rotary_pairs(8, neighbours=False).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("rotary", [0, 8])
def test_the_variance_of_logits_against_simulation(neighbours, rotary, tmp_path):
    """One head of 16 channels (all or 8 of them rotary), random queries, keys and distances."""
    rng = np.random.default_rng(1)
    length = 16
    q_mean, q_var, k_var = rng.normal(0, 1, length), rng.lognormal(0, 1, length), rng.lognormal(0, 1, length)
    maker = dense()
    maker.architecture = "llama" if neighbours else "qwen2"
    maker.pairs |= {"attention.key_length": 16, "attention.value_length": 16}
    if rotary:
        maker.pairs["rope.dimension_count"] = rotary
    with open_model(maker.write(tmp_path / "model.gguf")) as model:
        anatomy = read_anatomy(model)
    assert anatomy.neighbour_rope is neighbours
    assert (anatomy.rotary or 0) == rotary
    how = {"rotary": rotary or length, "neighbours": neighbours}
    estimate = logit_variance(q_mean**2 + q_var, k_var, heads=1, kv_heads=1, **how)

    draws = 300_000
    q = q_mean + np.sqrt(q_var) * rng.standard_normal((draws, length))
    k = np.sqrt(k_var) * rng.standard_normal((draws, length))
    turned = k.copy()
    for one, other in rotary_pairs(rotary or length, neighbours=neighbours):
        angle = rng.uniform(0, 2 * np.pi, draws)
        turned[:, one] = np.cos(angle) * k[:, one] - np.sin(angle) * k[:, other]
        turned[:, other] = np.sin(angle) * k[:, one] + np.cos(angle) * k[:, other]
    logits = (q * turned).sum(axis=1) / np.sqrt(length)
    assert estimate == pytest.approx([np.square(logits).mean()], rel=0.03)


def test_heads_that_share_keys_have_logits_of_their_own():
    rng = np.random.default_rng(3)
    q_second, k_var = rng.lognormal(0, 1, (4, 8)), rng.lognormal(0, 1, (2, 8))
    together = logit_variance(q_second.ravel(), k_var.ravel(), heads=4, kv_heads=2, rotary=6, neighbours=True)
    for head in range(4):
        alone = logit_variance(q_second[head], k_var[head // 2], heads=1, kv_heads=1, rotary=7, neighbours=True)
        assert together[head] == pytest.approx(alone[0])


def normed_moments(mean, var, norm, length):
    scales = norm_scales(mean, var, norm, length)
    return mean * scales, var * scales**2


def test_norms_of_heads():
    rng = np.random.default_rng(2)
    mean, var = rng.normal(0, 3, 32), rng.lognormal(2, 0.1, 32)
    weights = rng.lognormal(0, 0.3, 16)
    draws = mean + np.sqrt(var) * rng.standard_normal((200_000, 32))
    by_head = draws.reshape(-1, 2, 16)
    normed = (by_head / np.sqrt(np.square(by_head).mean(axis=2, keepdims=True)) * weights).reshape(-1, 32)
    second = sum(part**power for part, power in zip(normed_moments(mean, var, weights, 16), (2, 1), strict=True))
    assert second == pytest.approx(np.square(normed).mean(axis=0), rel=0.15)
    assert second.sum() == pytest.approx(np.square(normed).mean(axis=0).sum(), rel=0.02)
    assert normed_moments(mean, var, None, 16) == (pytest.approx(mean), pytest.approx(var))
    assert normed_moments(mean, var, np.ones(7), 16) == (pytest.approx(mean), pytest.approx(var))
