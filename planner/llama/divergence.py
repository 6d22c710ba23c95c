"""How far a model's predictions are from the original's, token by token: what `llama-perplexity` computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.llama import logprobs

__all__ = ["Divergence", "compare", "join"]

_LEAST = np.float32(-16)  # words less likely than e^-16 in the original do not count, as in llama-perplexity
_ELEMENTS_AT_A_TIME = 1 << 22  # of logits, in each thread: 16 MiB of float32, and as much three times over


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of n predicted tokens, each an array [n].

    `nll`, `nll_base` are the negative log-likelihoods (nats) of the token that came, by this model and the original;
    `kld` the Kullback-Leibler divergence (nats) of this model from the original; `top`, `top_base` the most likely
    token by each, and `tokens` the one that came.
    """

    nll: NDArray[np.float32]
    nll_base: NDArray[np.float32]
    kld: NDArray[np.float32]
    top: NDArray[np.int32]
    top_base: NDArray[np.int32]
    tokens: NDArray[np.int32]

    @property
    def p_diff(self) -> NDArray[np.float32]:
        """Probability of the token that came, this model's less the original's."""
        return np.exp(-self.nll) - np.exp(-self.nll_base)


def compare(
    logits: NDArray[np.float32], base: NDArray[np.uint16], tokens: NDArray[np.int32], pool: Executor | None = None
) -> Divergence:
    """Compare logits f32[n, vocabulary] with the original's rows u16[n, ...] (see `logprobs`), where tokens i32[n]
    came. With a `pool` of threads in several of them."""
    count, vocabulary = logits.shape
    step = max(1, _ELEMENTS_AT_A_TIME // vocabulary)
    slices = [slice(start, start + step) for start in range(0, count, step)]

    def some(rows: slice) -> Divergence:
        return _compare(logits[rows], base[rows], tokens[rows])

    return join(list((pool.map if pool else map)(some, slices)))


def join(parts: Sequence[Divergence]) -> Divergence:
    """One after the other."""
    return Divergence(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Divergence)))


def _compare(logits: NDArray[np.float32], base: NDArray[np.uint16], tokens: NDArray[np.int32]) -> Divergence:
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, dtype=np.float64)).astype(np.float32)[:, None]
    log_base = logprobs.decode(base, logits.shape[1])
    rows = np.arange(len(tokens))
    p_base = np.exp(log_base)
    p_base[log_base <= _LEAST] = 0
    return Divergence(
        nll=-log_p[rows, tokens],
        nll_base=-log_base[rows, tokens],
        kld=np.einsum("ij,ij->i", p_base, log_base - log_p, dtype=np.float64).astype(np.float32),
        top=logits.argmax(axis=1).astype(np.int32),
        top_base=base[:, 4 : 4 + logits.shape[1]].argmax(axis=1).astype(np.int32),
        tokens=tokens.astype(np.int32),
    )
