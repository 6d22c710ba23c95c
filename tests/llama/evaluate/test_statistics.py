"""Statistics of a divergence against the loops of llama-perplexity, written out."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.llama.evaluate import logprobs
from planner.llama.evaluate.divergence import compare
from planner.llama.evaluate.statistics import Statistics, block_starts, perplexity, shown_in, statistics


def loops(logits, base, tokens):
    """`log_softmax` and `kl_divergence` of tools/perplexity/perplexity.cpp, number by number."""
    f = np.float32
    nll, nll_base, kld, same, p_diff = [], [], [], 0, []
    for row, packed, token in zip(logits, base, tokens, strict=True):
        top = max(row)
        log_sum = f(math.log(sum(float(np.exp(value - top)) for value in row)))
        scale, least = packed[:4].copy().view(f)
        words = [f(f(scale * f(number)) + least) for number in packed[4 : 4 + len(row)]]
        nll.append(float(top + log_sum - row[token]))
        nll_base.append(float(-words[token]))
        total = 0.0
        for log_p, value in zip(words, row, strict=True):
            if log_p > -16:
                total += float(np.exp(log_p) * (log_p - value + (top + log_sum)))
        kld.append(total)
        same += int(np.argmax(row)) == int(np.argmax(words))
        p_diff.append(math.exp(-nll[-1]) - math.exp(-nll_base[-1]))
    return nll, nll_base, kld, same, p_diff


def mean_and_uncertainty(values):
    count = len(values)
    mean = sum(values) / count
    return mean, math.sqrt((sum(value**2 for value in values) / count - mean**2) / (count - 1))


@pytest.mark.parametrize("seed", range(3))
def test_as_llama_perplexity_computes_them(seed):
    rng = np.random.default_rng(seed)
    logits = (5 * rng.standard_normal((130, 40))).astype(np.float32)
    logits[:, 0] += 8  # a word that is often on top, and some that do not count beside it
    base = logprobs.encode((logits + 0.7 * rng.standard_normal(logits.shape)).astype(np.float32))
    tokens = np.where(rng.random(130) < 0.5, 0, rng.integers(40, size=130)).astype(np.int32)
    found = statistics(compare(logits, base, tokens), [1] * 130)  # a block for every token
    nll, nll_base, kld, same, p_diff = loops(logits, base, tokens)

    def close(value, expected):
        assert value == pytest.approx(expected, rel=2e-5, abs=1e-9)

    for estimate, values in ((found.ppl, nll), (found.ppl_base, nll_base)):
        mean, error = mean_and_uncertainty(values)
        close(estimate.value, math.exp(mean))
        close(estimate.error, math.exp(mean) * error)
    close((found.kld.value, found.kld.error), mean_and_uncertainty(kld))
    close((found.p_diff.value, found.p_diff.error), mean_and_uncertainty(p_diff))
    close(found.same_top.value, same / 130)
    close(found.same_top.error, math.sqrt(same / 130 * (1 - same / 130) / 129))

    square, error = mean_and_uncertainty([value**2 for value in p_diff])
    close((found.p_diff_rms.value, found.p_diff_rms.error), (math.sqrt(square), 0.5 / math.sqrt(square) * error))

    sds = [mean_and_uncertainty(values)[1] for values in (nll, nll_base)]
    products = sum(a * b for a, b in zip(nll, nll_base, strict=True)) / 130
    covariance = (products - sum(nll) / 130 * (sum(nll_base) / 130)) / 129
    close(found.ln_ppl_ratio.value, (sum(nll) - sum(nll_base)) / 130)
    close(found.ln_ppl_ratio.error, math.sqrt(sds[0] ** 2 + sds[1] ** 2 - 2 * covariance))

    kld.sort()
    close(found.kld_max, kld[-1])
    close(found.kld_median, (kld[64] + kld[65]) / 2)
    for share, value in ((0.9, found.kld_90), (0.95, found.kld_95), (0.99, found.kld_99), (0.999, found.kld_999)):
        place = share * 129
        below = int(place)
        close(value, kld[below] + (place - below) * (kld[min(below + 1, 129)] - kld[below]))

    right, right_base = logits.argmax(axis=1) == tokens, base[:, 4:44].argmax(axis=1) == tokens
    assert found.right_to_wrong == sum(right_base & ~right) > 0
    assert found.wrong_to_right == sum(right & ~right_base)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 99))
def test_errors_are_between_blocks(windows, seed):
    """By a loop over blocks; and blocks are windows, or equal parts of them where these are few."""
    rng, count = np.random.default_rng(seed), sum(windows)
    nll = rng.gamma(2, size=count).astype(np.float32)
    starts = block_starts(windows).tolist()
    assert set(np.cumsum([0, *windows[:-1]]).tolist()) <= set(starts)
    assert len(starts) >= min(16, count) or len(windows) < 16
    if len(windows) >= 16:
        assert len(starts) == len(windows)
    mean = math.log(perplexity(nll, np.array(starts)).value)
    assert mean == pytest.approx(float(nll.mean()), rel=1e-5)
    square = 0.0
    for begin, end in zip(starts, [*starts[1:], count], strict=True):
        square += (float(nll[begin:end].sum()) - mean * (end - begin)) ** 2
    blocks = len(starts)
    expected = math.sqrt(square * blocks / (blocks - 1)) / count if blocks > 1 else 0
    found = perplexity(nll, np.array(starts))
    assert found.error == pytest.approx(found.value * expected, rel=1e-4, abs=1e-7)


def test_tokens_that_are_alike_tell_less():
    """Where all tokens of a window are the same, only windows count."""
    each = np.random.default_rng(0).gamma(2, size=50)
    tokens = np.repeat(each, 30).astype(np.float32)
    alone, between = perplexity(tokens, np.arange(1500)), perplexity(tokens, block_starts([30] * 50))
    assert between.value == alone.value
    assert between.error / between.value == pytest.approx(each.std(ddof=1) / math.sqrt(50), rel=1e-5)
    assert between.error > 5 * alone.error


def test_divergence_by_confidence():
    rng = np.random.default_rng(1)
    logits = (3 * rng.standard_normal((200, 12))).astype(np.float32)
    logits[:30, 5] += 9
    base = logprobs.encode((logits + 0.2 * rng.standard_normal(logits.shape)).astype(np.float32))
    found = compare(logits, base, np.zeros(200, np.int32))
    buckets = statistics(found, [10] * 20).kld_by_confidence
    assert [(bucket.least, bucket.most) for bucket in buckets] == [(0, 0.5), (0.5, 0.9), (0.9, 0.99), (0.99, 1)]
    for bucket in buckets:
        inside = [
            float(kld)
            for kld, row in zip(found.kld, logprobs.decode(base, 12), strict=True)
            if bucket.least <= math.exp(max(row)) < bucket.most or (bucket.most == 1 <= math.exp(max(row)))
        ]
        assert bucket.tokens == len(inside) > 5
        assert bucket.kld.value == pytest.approx(sum(inside) / len(inside), rel=1e-6)
        assert 0 < bucket.kld.error < bucket.kld.value
    unsure = compare(np.zeros((2, 4), np.float32), logprobs.encode(np.zeros((2, 4), np.float32)), np.zeros(2, np.int32))
    assert [(bucket.most, bucket.tokens) for bucket in statistics(unsure, [2]).kld_by_confidence] == [(0.5, 2)]


def test_one_token_and_none_that_is_a_number():
    logits = np.full((1, 4), np.nan, np.float32)
    base = logprobs.encode(np.zeros((1, 4), np.float32))
    found = statistics(compare(logits, base, np.zeros(1, np.int32)), [1])
    assert math.isnan(found.kld.value)
    assert found.ppl_base.value == pytest.approx(4)
    assert found.ppl_base.error == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.sampled_from([-np.inf, np.float32(-3e38), np.float32(-1e9), np.float32(-104.5)]))
def test_words_that_nobody_says_count_nothing(seed, value):
    """As if the vocabulary did not have them, whatever it is that makes a model never say them."""
    rng = np.random.default_rng(seed)
    vocabulary, count = 30, 40
    said = np.sort(rng.choice(vocabulary, 20, replace=False))
    logits, others = (2 * rng.standard_normal((2, count, 20))).astype(np.float32)
    tokens = rng.integers(20, size=count).astype(np.int32)
    expected = compare(others, logprobs.encode(logits), tokens)

    def silent(some):
        whole = np.full((count, vocabulary), value, np.float32)
        whole[:, said] = some
        return whole

    found = compare(silent(others), logprobs.encode(silent(logits)), said[tokens].astype(np.int32))
    # with such a word in it a row always spans 16 nats, and its steps may be larger
    np.testing.assert_allclose(found.kld, expected.kld, atol=2e-3)
    np.testing.assert_allclose(found.nll, expected.nll, atol=1e-5)
    same = compare(
        silent(logits), logprobs.encode(silent(logits)), rng.integers(vocabulary, size=count).astype(np.int32)
    )
    sums = statistics(same, [count])
    assert abs(sums.kld.value) < 2e-5  # of rounding to 16 bits: 1.2e-5 for one of the thousand seeds
    assert abs(sums.ln_ppl_ratio.value) < 0.01 or value == np.float32(-104.5)
    assert sums.ppl.error < np.inf


def test_what_is_never_said_any_more_is_infinitely_far():
    logits = np.zeros((3, 4), np.float32)
    base, tokens = logprobs.encode(logits), np.zeros(3, np.int32)
    lost = logits.copy()
    lost[1, 2] = -np.inf
    found = compare(lost, base, tokens)
    assert np.isinf(found.kld).tolist() == [False, True, False]
    assert np.isfinite(found.nll).all()
    sums = statistics(found, [3])
    assert (sums.kld.value, sums.kld.error, sums.kld_max, sums.kld_999) == (np.inf, np.inf, np.inf, np.inf)
    assert np.isfinite(sums.kld_median)
    came = statistics(compare(lost, base, np.full(3, 2, np.int32)), [3])
    assert (came.ppl.value, came.ln_ppl_ratio.value) == (np.inf, np.inf)
    assert came.p_diff.value == pytest.approx((2 * (1 / 4 - 1 / 4) - 1 / 4) / 3, abs=1e-4)


def test_a_statistic_is_one_line():
    """Its field alone puts it into the tables: what is shown exists, and no heading stands twice."""
    for table in ("change", "distribution"):
        columns = shown_in(table)
        assert set(columns) <= {entry.name for entry in fields(Statistics)}
        assert len({column.heading for column in columns.values()}) == len(columns) > 4
