"""Designs of passes: each tensor alone, whole blocks and roles, or a given number of the most informative ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from planner.names.gguf import role_of
from planner.terms import Design

__all__ = ["DESIGNS", "Design", "factored", "parts", "select_passes"]

DESIGNS: tuple[Design, ...] = get_args(Design)

Doubles = NDArray[np.float64]

_PARTS = (2, 3, 6)
_NOISE = 0.1  # of the logarithm of a pass's KL divergence, expected before it is known


def factored(names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return labels and tensors of passes over one block at a time, one role at a time, and each tensor outside the
    blocks alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        block, role = role_of(name)
        if block is None:
            groups[name] = [name]
            continue
        groups.setdefault(f"blk.{block}", []).append(name)
        groups.setdefault(role, []).append(name)
    return [(label, tuple(members)) for label, members in groups.items()]


def parts(names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return labels and tensors of passes over one role in a part of the depth: halves, thirds, sixths."""
    last = max((role_of(name)[0] or 0 for name in names), default=0)
    groups: dict[str, list[str]] = {}
    for count in _PARTS:
        for name in names:
            block, role = role_of(name)
            if block is not None:
                groups.setdefault(f"{role} {block * count // (last + 1) + 1}/{count}", []).append(name)
    return [(label, tuple(members)) for label, members in groups.items() if len(members) > 1]


def select_passes(
    names: Sequence[str], covariance: Doubles, elements: Mapping[str, int], passes: int
) -> list[tuple[str, tuple[str, ...]]]:
    """Select at most `passes` passes, over single tensors, blocks, roles or parts of these, each the most informative
    given those before: greedy, A-optimal experimental design.

    At the best recipe a tensor's loss is proportional to the number of its weights (a bit more divides the error by
    four, whatever the tensor), and the excess loss from a wrong sensitivity is that loss times half the square of the
    error of its logarithm: so the criterion to minimize is Σ elements x variance, `covariance` being that of the
    logarithms, f64[n, n]. Tensors changed together are assumed to share the pass's divergence equally.
    """
    single = [(name, (name,)) for name in names]
    distinct = {members: label for label, members in (*parts(names), *factored(names), *single)}
    candidates = [(label, members) for members, label in distinct.items()]
    column = {name: number for number, name in enumerate(names)}
    slopes = np.zeros((len(candidates), len(names)))
    for row, (_, members) in enumerate(candidates):
        slopes[row, [column[name] for name in members]] = 1 / len(members)
    importance = np.array([elements[name] for name in names], np.float64)
    # always keep the pass of a tensor outside the blocks: no other pass informs about it
    alone = [row for row, (_, members) in enumerate(candidates) if role_of(members[0])[0] is None]
    reach = covariance @ slopes.T
    chosen: list[int] = []
    for turn in range(min(passes, len(candidates))):
        spread = np.einsum("ij,ji->i", slopes, reach) + _NOISE**2
        gain = (importance @ reach**2) / spread
        gain[chosen] = -1.0
        best = alone[turn] if turn < len(alone) else int(gain.argmax())
        chosen.append(best)
        along = reach[:, best].copy()
        reach -= np.outer(along, slopes @ along) / spread[best]
    return [candidates[row] for row in chosen]
