"""Second moments inside a block, where the imatrix has none: behind activation functions, norms, and in logits.

All functions take means and variances of channels, which are Gaussian where that matters, and uncorrelated. Their use
is described in docs/design.md, "Structure".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from planner.measure.anatomy import Activation

__all__ = ["ACTIVATIONS", "activation_moments", "logit_variance", "norm_scales", "rotary_pairs"]

Doubles = NDArray[np.float64]

_LEAST = 1e-30  # of a mean square that is divided by
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def activation_moments(mean: Doubles, var: Doubles, activation: Activation) -> tuple[Doubles, Doubles]:
    """Return E[act(g)²] and E[act'(g)²] for Gaussian g of these means and variances, each float64 [n].

    By Gauss-Hermite quadrature with 24 nodes.
    """
    g = mean[:, None] + np.sqrt(var)[:, None] * _NODES
    value, slope = ACTIVATIONS[activation](g)
    return (value**2) @ _WEIGHTS, (slope**2) @ _WEIGHTS


def norm_scales(mean: Doubles, var: Doubles, norm: Doubles | None, length: int) -> Doubles:
    """Return what an RMS norm with weights `norm` over each `length` channels, or over all n, multiplies channels of
    these means and variances by, float64 [n]: norm / √(mean of E[x²]), as if that did not vary.

    Without a norm, or with one of another length, ones.
    """
    if norm is None or len(norm) not in (length, len(mean)):
        return np.ones_like(mean)
    second = (mean**2 + var).reshape(-1, len(norm)).mean(axis=1, keepdims=True)
    return np.asarray(norm / np.sqrt(np.maximum(second, _LEAST))).reshape(-1)


def logit_variance(
    q_second: Doubles, k_var: Doubles, *, heads: int, kv_heads: int, rotary: int, neighbours: bool
) -> Doubles:
    """Return the variance over keys of each head's attention logits, float64 [heads].

    `q_second` is E[q²], float64 [heads * d], and `k_var` the variance of keys, float64 [kv_heads * d]; consecutive
    heads share keys. With rotation by an angle that is anything, a pair of channels adds Σ E[q²] Σ var(k) / 2d, each
    sum over the pair; a channel behind the first `rotary` of a head, which does not rotate, E[q²] var(k) / d.
    """
    q_second, k_var = q_second.reshape(heads, -1), np.repeat(k_var.reshape(kv_heads, -1), heads // kv_heads, axis=0)
    length = q_second.shape[1]
    rotary = rotary // 2 * 2
    pairs = rotary_pairs(rotary, neighbours=neighbours)
    logits = (q_second[:, pairs].sum(axis=2) * k_var[:, pairs].sum(axis=2)).sum(axis=1) / (2 * length)
    logits += (q_second[:, rotary:] * k_var[:, rotary:]).sum(axis=1) / length
    return np.asarray(logits)


def rotary_pairs(rotary: int, *, neighbours: bool) -> NDArray[np.int64]:
    """Return the channels of a head that rotate together, int64 [rotary / 2, 2]: neighbours (llama.cpp's NORM), or
    those that are half of `rotary` apart (NEOX)."""
    order = np.arange(rotary)
    return order.reshape(-1, 2) if neighbours else order.reshape(2, -1).T


def _silu(g: Doubles) -> tuple[Doubles, Doubles]:
    sigmoid = 0.5 * (1 + np.tanh(g / 2))
    return g * sigmoid, sigmoid * (1 + g * (1 - sigmoid))


def _sigmoid(g: Doubles) -> tuple[Doubles, Doubles]:
    sigmoid = 0.5 * (1 + np.tanh(g / 2))
    return sigmoid, sigmoid * (1 - sigmoid)


def _gelu(g: Doubles) -> tuple[Doubles, Doubles]:
    inner = np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)
    tanh = np.tanh(inner)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * g**2)
    return 0.5 * g * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * g * (1 - tanh**2) * slope


def _relu_squared(g: Doubles) -> tuple[Doubles, Doubles]:
    positive = np.maximum(g, 0.0)
    return positive**2, 2 * positive


# g → act(g) and act'(g); gelu is ggml's, which takes tanh for erf
ACTIVATIONS: Mapping[Activation, Callable[[Doubles], tuple[Doubles, Doubles]]] = MappingProxyType(
    {"silu": _silu, "gelu": _gelu, "relu2": _relu_squared, "sigmoid": _sigmoid}
)
