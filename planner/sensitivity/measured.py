"""Sensitivities corrected by passes of the model: the reference (`structure`) is the prior, passes are the evidence.

A tensor's true loss is modelled as its reference loss times exp(δ), with a Gaussian prior on the δ: one component
common to the model, one that drifts with depth, one of each role, one by which that role drifts, and one of the tensor.
A pass over changed tensors observes Σ loss exp(δ), with the standard error of its KL divergence. The posterior mode of
all δ together (Gauss-Newton on the logarithm of each pass) is then the correction; a noisy pass moves it little, and a
tensor that was not measured moves with what is near it, its role and the rest of the model. One estimator serves every
design of passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.names.gguf import role_of

__all__ = [
    "IN_NATS",
    "UP_TO_SCALE",
    "Correction",
    "Observation",
    "Spreads",
    "evidence",
    "posterior",
    "prior_covariance",
]

Doubles = NDArray[np.float64]

REACH = 0.25  # of the depth, over which a drift forgets where it was
UNPLACED_SPREAD = 1.0  # of a tensor whose only reference is its role's
LINEARITY = 0.05  # relative; a sensitivity is not quite the same for every size of error
_STEPS = 30


class Spreads(NamedTuple):
    """The mean of all δ, and the standard deviations of their components: what is common to the model, what drifts with
    depth, what is of a role, what of that drifts, and what is a tensor's own."""

    centre: float
    common: float
    depth: float
    role: float
    drift: float
    own: float


# KL divergence (nats) per share of the stream's energy that errors add: 0.22 on prose-8m, 0.09 on SmolLM2-135M.
# Standard deviations from `python -m benchmarks.measured_spread`
UP_TO_SCALE = Spreads(math.log(0.15), 1.5, depth=0.4, role=0.1, drift=0.3, own=0.25)
# About losses that are in nats, by reach: `python -m benchmarks.pass_spread`, over five models; what is common was
# nothing there, but passes may be over another text
IN_NATS = Spreads(0.0, 0.4, depth=0.2, role=0.15, drift=0.1, own=0.2)


class Observation(NamedTuple):
    """One pass: the reference's losses of the changed tensors, and the measured KL divergence."""

    losses: Mapping[str, float]
    kld: float
    stderr: float


class Correction(NamedTuple):
    """A factor on a tensor's reference loss, and the standard deviation of its logarithm without the component common
    to all tensors."""

    factor: float
    log_std: float


def prior_covariance(names: Sequence[str], placed: Mapping[str, bool], spreads: Spreads = UP_TO_SCALE) -> Doubles:
    """Return the prior covariance of the tensors' δ, f64[n, n], without the common component.

    `placed` tells which have a reference of their own rather than their role's.
    """
    blocks, roles = zip(*(role_of(name) for name in names), strict=True) if names else ((), ())
    inside = np.array([block is not None for block in blocks], bool)
    depth = np.array([block or 0 for block in blocks], np.float64)
    depth /= max(depth.max(initial=0.0), 1.0)
    near = np.exp(-np.abs(depth[:, None] - depth[None, :]) / REACH)  # Ornstein and Uhlenbeck's
    same_role = _same(roles)
    shared = spreads.depth**2 * near + same_role * (spreads.role**2 + spreads.drift**2 * near)
    # a tensor outside the blocks shares no component: all its variance is its own
    shared *= inside[:, None] & inside[None, :]
    own = np.where([placed[name] for name in names], spreads.own, UNPLACED_SPREAD) ** 2
    own = np.where(inside, own, own + spreads.depth**2 + spreads.role**2 + spreads.drift**2)
    return np.asarray(shared + np.diag(own), np.float64)


def evidence(names: Sequence[str], observations: Sequence[Observation]) -> tuple[Doubles, Doubles, Doubles]:
    """Return what the passes that change anything say: the reference's losses of the tensors, f64[passes, n], the
    logarithms of divergences, f64[passes], and the variances of their noise, f64[passes]."""
    column = {name: number for number, name in enumerate(names)}
    losses = np.zeros((len(observations), len(names)))
    for row, observation in enumerate(observations):
        for name, loss in observation.losses.items():
            losses[row, column[name]] = loss
    usable = losses.sum(axis=1) > 0
    klds = np.array([entry.kld for entry in observations], np.float64)[usable]
    # A divergence within its own noise only tells that it is small
    least = np.maximum(np.array([entry.stderr for entry in observations], np.float64)[usable], 1e-12)
    klds = np.maximum(klds, least)
    return losses[usable], np.log(klds), np.hypot(least / klds, LINEARITY) ** 2


def posterior(
    names: Sequence[str], covariance: Doubles, observations: Sequence[Observation], spreads: Spreads = UP_TO_SCALE
) -> dict[str, Correction]:
    """Return the correction of every tensor given all observations. `covariance`, f64[n, n], is the prior's, by
    `spreads`."""
    column = {name: number for number, name in enumerate(names)}
    losses, seen, noise = evidence(names, observations)
    if not len(seen):
        return {name: Correction(math.exp(spreads.centre), math.sqrt(covariance[n, n])) for name, n in column.items()}
    prior = covariance + spreads.common**2
    delta = np.full(len(names), spreads.centre)
    for _ in range(_STEPS):
        parts = losses * np.exp(delta)
        sums = parts.sum(axis=1)
        slopes = parts / sums[:, None]
        gain = np.linalg.solve(slopes @ prior @ slopes.T + np.diag(noise), slopes @ prior).T
        target = spreads.centre + gain @ (seen - np.log(sums) + slopes @ (delta - spreads.centre))
        step = target - delta
        delta = delta + step
        if np.abs(step).max() < 1e-9:
            break
    # the uncertainty that matters to a recipe: of the tensors against each other
    own_gain = np.linalg.solve(slopes @ covariance @ slopes.T + np.diag(noise), slopes @ covariance).T
    left = np.maximum(np.diag(covariance) - np.einsum("ij,ji->i", own_gain, slopes @ covariance), 0.0)
    return {name: Correction(math.exp(delta[n]), math.sqrt(left[n])) for name, n in column.items()}


def _same(labels: Sequence[object]) -> NDArray[np.bool_]:
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    codes = np.array([numbers[label] for label in labels], np.int64)
    return np.asarray(codes[:, None] == codes[None, :], np.bool_)
