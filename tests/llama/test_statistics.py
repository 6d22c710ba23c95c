"""Statistics of a divergence against the loops of llama-perplexity, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planner.llama import divergence as module
from planner.llama import logprobs
from planner.llama.divergence import compare
from planner.llama.statistics import statistics
from planner.llama.workers import Workers


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
    found = statistics(compare(logits, base, tokens))
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


def test_parts_and_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 33)).astype(np.float32)
    base = logprobs.encode(rng.standard_normal((50, 33)).astype(np.float32))
    tokens = rng.integers(33, size=50).astype(np.int32)
    whole = compare(logits, base, tokens)
    monkeypatch.setattr(module, "_ELEMENTS_AT_A_TIME", 100)
    with Workers(3, "test") as workers:
        parts = compare(logits, base, tokens, workers)
    for field in ("nll", "nll_base", "kld", "top", "top_base", "tokens"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(parts, field))


def test_one_token_and_none_that_is_a_number():
    logits = np.full((1, 4), np.nan, np.float32)
    base = logprobs.encode(np.zeros((1, 4), np.float32))
    found = statistics(compare(logits, base, np.zeros(1, np.int32)))
    assert math.isnan(found.kld.value)
    assert found.ppl_base.value == pytest.approx(4)
    assert found.ppl_base.error == 0
