"""Log-probabilities in 16 bits, as `llama-perplexity --kl-divergence-base` keeps them.

A file is `_logits_`, then int32 context, vocabulary and windows, then the tokens, i32[windows, context], then for
each window the rows of its second half but the last, u16[context - 1 - context // 2, width]. A row is two float32,
scale and least log-probability, and a number for every word: log p = scale * number + least, 16 nats below the most
likely word at the lowest (`log_softmax` in llama.cpp's tools/perplexity/perplexity.cpp).
So log-probabilities are off by half a step at most, 16 / 65535 / 2 = 1.2e-4 nats, down to those 16 nats.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode", "encode", "pieces", "row_width", "scored"]

_RANGE = np.float32(16)  # nats that are kept below the most likely word
_STEPS = np.float32(65535)
_ELEMENTS_AT_A_TIME = 1 << 18  # of logits, in each thread: a few arrays of 1 MiB stay in its cache


def row_width(vocabulary: int) -> int:
    """Return how many 16-bit numbers a row has: four for the two floats, and the words, made even."""
    return 2 * ((vocabulary + 1) // 2) + 4


def pieces(rows: int, vocabulary: int) -> Iterator[slice]:
    """Divide rows into pieces of a size that a thread works on."""
    step = max(1, _ELEMENTS_AT_A_TIME // vocabulary)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def scored(context: int) -> slice:
    """Return the positions of a window whose next token is predicted with enough context: its second half but the
    last, whose next token is in the next window."""
    return slice(context // 2, context - 1)


def encode(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Encode logits f32[n, vocabulary] as rows u16[n, row_width(vocabulary)]; scale and least are NaN where a logit is
    NaN or infinite. Minus infinity is the logit of a word that is never said."""
    count, vocabulary = logits.shape
    rows = np.zeros((count, row_width(vocabulary)), np.uint16)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        top = logits.max(axis=1)
        low = np.maximum(logits.min(axis=1), top - _RANGE)
        total = np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)).astype(np.float32)
        scale = (top - low) / _STEPS
        rows[:, :4].view(np.float32)[:] = np.stack([scale, low - top - total], axis=1)
        steps = scale >= np.finfo(np.float32).tiny  # else all words are alike, or there is no order in them
        inverse = np.where(steps, np.float32(1) / np.where(steps, scale, np.float32(1)), np.float32(0))
        above = np.maximum(logits - low[:, None], 0)
        above *= inverse[:, None]
        above[~steps] = 0
        rows[:, 4 : 4 + vocabulary] = np.rint(above, out=above)
    return rows


def decode(rows: NDArray[np.uint16], vocabulary: int) -> NDArray[np.float32]:
    """Decode rows u16[n, row_width(vocabulary)] to log-probabilities, f32[n, vocabulary]."""
    scale, least = np.ascontiguousarray(rows[:, :4]).view(np.float32).T
    values = rows[:, 4 : 4 + vocabulary].astype(np.float32)
    values *= scale[:, None]
    values += least[:, None]
    return values
