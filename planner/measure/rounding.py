"""Errors of rounding activations to 8 bits, as llama.cpp does on a CPU to multiply quantized weights.

Such an error adds to that of the weights: both make the product noisy, and the same sensitivity says what that costs.
It does not shrink as the weights become better, and it depends on their format: those with blocks of 256 weights take
activations in blocks of 256 with a common scale (ggml's Q8_K), all others in blocks of 32 (Q8_0 or Q8_1), where a large
activation spoils fewer others.

How large activations are beside their neighbours, the imatrix says: activations are drawn with the mean and the
variance that it has of every channel, and rounded. docs/design.md has the evidence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.measure.anatomy import Anatomy
from planner.measure.survey import Survey
from planner.names.gguf import role_of
from planner.sensitivity import NOT_ROUNDED, Rounding
from planner.sensitivity.rounding import COARSE, FINE

__all__ = ["rounded", "rounding_of"]

Doubles = NDArray[np.float64]

_STEPS = 127  # of the largest activation: quantize_row_q8_0 and quantize_row_q8_K of ggml-quants.c
_DRAWS = 64  # of a tensor's activations: its error to a few percent
_FEWEST_DRAWS = 4  # of an expert's
_LOGITS = ("output", "token_embd")


def rounding_of(survey: Survey, anatomy: Anatomy, *, tied: bool) -> Rounding:
    """Return the errors to be expected of a tensor, zero for one that is not multiplied with activations. Massive
    channels, which few tokens have, are left out."""
    role, count = role_of(survey.tensor.name)[1], survey.tensor.matrices
    if "embd" in role and not (tied and role == "token_embd"):
        return NOT_ROUNDED
    mean, variance, energy = survey.moments.mean, survey.moments.variance, survey.energy
    norm = anatomy.output_norm
    if role in _LOGITS and not survey.moments.known and norm is not None and norm.shape == variance[0].shape:
        variance = norm[None, :] ** 2  # the imatrix seldom has what goes into the logits
        energy = float((survey.columns * variance).sum())
    if energy <= 0:
        return NOT_ROUNDED
    noise = _noise(role, max(_DRAWS // count, _FEWEST_DRAWS), survey.tensor.row_length)
    sums = np.zeros(2)
    for matrix in range(count):
        ordinary = ~survey.massive[matrix]
        activations = (mean[matrix] + np.sqrt(variance[matrix]) * noise) * ordinary
        columns = survey.columns[matrix] * survey.moments.usage[matrix]
        sums += [np.mean(np.square(rounded(activations, block) - activations) @ columns) for block in (FINE, COARSE)]
    fine, coarse = (sums / energy).tolist()
    return Rounding(fine, coarse)


def _noise(role: str, draws: int, channels: int) -> Doubles:
    """Draw how activations lie about their means, f64[draws, channels] of variance 1, the same every time.

    Sums of many terms, which most are, are Gaussian. The product that a gated feed-forward makes has longer tails:
    with three factors, errors came out at 0.6 to 1.1 of those that two models have. Likewise the last norm's output.
    """
    rng, shape = np.random.default_rng(0), (draws, channels)
    if role.startswith("ffn_down"):
        return np.asarray(rng.standard_normal((3, *shape)).prod(axis=0))
    if role in _LOGITS:
        return rng.laplace(scale=np.sqrt(0.5), size=shape)
    return rng.standard_normal(shape)


def rounded(activations: Doubles, block: int) -> Doubles:
    """Round activations f64[r, n] to 8 bits, in blocks with a common scale; the last block may be shorter."""
    count, width = activations.shape
    padded = np.zeros((count, -(-width // block) * block))
    padded[:, :width] = activations
    blocks = padded.reshape(count, -1, block)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / _STEPS
    step[step == 0] = 1
    return np.asarray((np.rint(blocks / step) * step).reshape(count, -1)[:, :width])
