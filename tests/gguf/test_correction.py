"""Corrected weights: against least squares over the tokens themselves."""

from __future__ import annotations

import numpy as np
import pytest

from planner.gguf.correction import Moments

TOKENS, WIDTH, CHANNELS, ROWS = 700, 136, 40, 24


@pytest.fixture
def tokens():
    """Inputs and stream of a model and of a rounded one, f32: a, a', s, s'."""
    rng = np.random.default_rng(5)
    mixed = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] * rng.uniform(0.3, 3, WIDTH)
    a = rng.standard_normal((TOKENS, WIDTH)) @ mixed
    other = a + 0.2 * rng.standard_normal((TOKENS, WIDTH)) @ mixed + 0.1
    s = rng.standard_normal((TOKENS, CHANNELS))
    return [each.astype(np.float32) for each in (a, other, s, s - 0.1 * other[:, :CHANNELS] + 0.02)]


def gathered(a, other, s, lacking, pieces=3) -> Moments:
    moments = Moments(WIDTH, {"writes": CHANNELS})
    for part in np.array_split(np.arange(TOKENS), pieces):
        for add in moments.additions(other[part], a[part] - other[part], {"writes": s[part] - lacking[part]}):
            add()
    return moments


def test_in_full_it_is_least_squares(tokens):
    a, other, s, lacking = tokens
    moments = gathered(*tokens)
    correction = moments.correction(share=1, shrinkage=0)
    rng = np.random.default_rng(6)
    for name, own, there in (("reads", 0, 0), ("writes", s, lacking)):
        weights = rng.standard_normal((CHANNELS if name == "writes" else ROWS, WIDTH)).astype(np.float32)
        best = np.linalg.lstsq(other.astype(np.float64), own + a @ weights.T - there, rcond=None)[0].T
        np.testing.assert_allclose(correction.apply(name, 0, weights), best, rtol=0, atol=2e-3 * np.abs(best).max())
        some = correction.apply(name, 8, weights[8:16])
        np.testing.assert_allclose(some, best[8:16], rtol=0, atol=2e-3 * np.abs(best).max())
    np.testing.assert_allclose(moments.covariance(), other.T @ other / TOKENS, rtol=1e-4, atol=1e-3)


def test_parts_of_it_and_shrinking(tokens):
    """Half of it is half; with more shrinking it comes nearer to what each channel says by itself."""
    moments = gathered(*tokens)
    whole, half = moments.correction(share=1), moments.correction(share=0.5)
    np.testing.assert_allclose(half.shift, whole.shift / 2, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(half.streams["writes"], whole.streams["writes"] / 2, rtol=1e-5, atol=1e-7)
    a, other, *_ = tokens
    alone = ((a - other).T @ other) / np.square(other).sum(axis=0)
    np.testing.assert_allclose(moments.correction(1, 1e6).shift, alone, rtol=1e-3, atol=1e-4)


def test_nothing_lacks_nothing_changes(tokens):
    a, _, s, _ = tokens
    a[:, 7] = 0  # a channel that is never reached
    correction = gathered(a, a, s, s).correction()
    weights = np.ones((CHANNELS, WIDTH), np.float32)
    np.testing.assert_array_equal(correction.apply("writes", 0, weights), weights)
