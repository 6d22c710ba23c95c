"""Divergence of a model's predictions from the original's, token by token, as `llama-perplexity` computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.llama.evaluate import logprobs

__all__ = ["Divergence", "compare", "join"]

_LEAST = np.float32(-16)  # words less likely than e^-16 in the original do not count, as in llama-perplexity


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of n predicted tokens, each an array [n].

    `nll`, `nll_base` are the negative log-likelihoods (nats) of the token that came, by this model and the original;
    `kld` the Kullback-Leibler divergence (nats) of this model from the original; `top`, `top_base` the most likely
    token by each, `confidence` the probability that the original gives to its own, and `tokens` the one that came.
    Where logits are no numbers, `nll` is NaN; where this model never says the token that came, infinite, unless the
    original does not say it either: that counts nothing, and `nll` is `nll_base`. `kld` is infinite where this model
    never says what the original does.
    """

    nll: NDArray[np.float32]
    nll_base: NDArray[np.float32]
    kld: NDArray[np.float32]
    top: NDArray[np.int32]
    top_base: NDArray[np.int32]
    confidence: NDArray[np.float32]
    tokens: NDArray[np.int32]

    @property
    def p_diff(self) -> NDArray[np.float32]:
        """Probability of the token that came, this model's less the original's."""
        return np.exp(-self.nll) - np.exp(-self.nll_base)


def join(parts: Sequence[Divergence]) -> Divergence:
    """Concatenate divergences."""
    return Divergence(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Divergence)))


def compare(logits: NDArray[np.float32], base: NDArray[np.uint16], tokens: NDArray[np.int32]) -> Divergence:
    """Compare logits f32[n, vocabulary] with the original's rows u16[n, ...] (see `logprobs`), where tokens i32[n]
    came.

    As the loop in llama-perplexity does, step by step in float32: where models hardly differ, a token's divergence is
    hardly more than rounding, and the same inputs are to give the same numbers.
    """
    rows, vocabulary = np.arange(len(tokens)), logits.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # a broken model's statistics are NaN
        top = logits.max(axis=1)
        terms = logits - top[:, None]
        np.exp(terms, out=terms)
        never = terms[rows, tokens] == 0  # not even the least that a float32 holds
        lowest = base[rows, 4 + tokens] == 0  # the least that the original's rows can hold
        log_total = np.log(terms.sum(axis=1, dtype=np.float64)).astype(np.float32)
        shift = top + log_total
        log_base = logprobs.decode(base, vocabulary)
        nll_base = -log_base[rows, tokens]
        nll = shift - logits[rows, tokens]
        np.subtract(log_base, logits, out=terms)
        terms += shift[:, None]
        counts = log_base > _LEAST
        # masks are slow, so words that do not count have a weight of 0; but infinity times 0 is NaN
        weights = np.exp(log_base)
        weights *= counts
        terms *= weights
        kld = terms.sum(axis=1, dtype=np.float64)
        if (lost := np.isnan(kld)).any():
            kld[lost] = np.where(counts[lost], terms[lost], np.float32(0)).sum(axis=1, dtype=np.float64)
    return Divergence(
        nll=np.where(never & lowest & ~counts[rows, tokens], nll_base, nll),
        nll_base=nll_base,
        kld=kld.astype(np.float32),
        top=logits.argmax(axis=1).astype(np.int32),
        top_base=base[:, 4 : 4 + vocabulary].argmax(axis=1).astype(np.int32),
        confidence=np.exp(log_base.max(axis=1)),
        tokens=tokens.astype(np.int32),
    )
