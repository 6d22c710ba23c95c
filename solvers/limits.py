"""Limits on the total weight of the chosen options, normalized to integers.

Fractions (an expert tensor that is read for 8 tokens of 256 counts 1/32 of its bytes) are multiplied by the least
common denominator of their limit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational
from typing import Any

import numpy as np

from solvers.arrays import LARGEST_TOTAL, IntArray
from solvers.choices import Choices, check_total
from solvers.errors import ProblemError

__all__ = ["Limit", "scaled_capacity", "scaled_weights"]


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """The chosen options may weigh at most `capacity` together.

    By default every group counts with its options' bytes. `members` are the groups that count (the others weigh
    nothing); as a mapping it gives the share of their bytes that counts. `weights` instead gives the weight of every
    option of every group that counts: by group name, or as one array over all options.
    """

    name: str
    capacity: int | Fraction
    members: Collection[str] | Mapping[str, int | Fraction] | None = None
    weights: Mapping[str, Sequence[int | Fraction]] | IntArray | None = None


def scaled_weights(limit: Limit, choices: Choices) -> tuple[IntArray, int]:
    """Return integer weights [options] under `limit`, and the factor that made them integers.

    Raises `ProblemError` for unknown groups, and for weights that are negative, neither integers nor fractions, or too
    large.
    """
    if limit.weights is not None and limit.members is not None:
        raise ProblemError(f"limit {limit.name!r} gives both members and weights: give one of them")
    if limit.weights is None and limit.members is None:
        return choices.sizes, 1
    scale = 1
    if isinstance(limit.weights, np.ndarray):
        row = limit.weights
        if row.shape != choices.sizes.shape or not np.issubdtype(row.dtype, np.signedinteger) or (row < 0).any():
            raise ProblemError(f"the weights of limit {limit.name!r} must be one integer >= 0 an option")
        row = row.astype(np.int64)
    else:
        exact = dict(_given(limit, choices))
        scale = math.lcm(1, *(weight.denominator for weights in exact.values() for weight in weights))
        row = np.zeros(choices.sizes.size, np.int64)
        for g, weights in exact.items():
            scaled = [int(weight * scale) for weight in weights]
            if max(scaled) >= LARGEST_TOTAL:
                raise ProblemError(
                    f"weights of {choices.names[g]!r} in limit {limit.name!r} times {scale} exceed 2**62"
                )
            row[choices.offsets[g] : choices.offsets[g + 1]] = scaled
    check_total(
        row, choices.offsets, f"the weights of limit {limit.name!r}" + (f" (times {scale})" if scale > 1 else "")
    )
    return row, scale


def scaled_capacity(limit: Limit, scale: int) -> int:
    """Return the greatest integer weight that `limit` allows. Raises `ProblemError` unless its capacity is exact."""
    if isinstance(limit.capacity, bool) or not isinstance(limit.capacity, Rational):
        raise ProblemError(f"the capacity of limit {limit.name!r} is {limit.capacity!r}: give an integer or a Fraction")
    return math.floor(Fraction(int(limit.capacity.numerator), int(limit.capacity.denominator)) * scale)


def _given(limit: Limit, choices: Choices) -> Iterator[tuple[int, list[Fraction]]]:
    """Yield the groups that `limit` lists, each with the exact weights of its options."""
    assert not isinstance(limit.weights, np.ndarray)
    for name in limit.weights if limit.weights is not None else limit.members or ():
        g = choices.group(name, f"limit {limit.name!r}")
        where = f"of group {name!r} in limit {limit.name!r}"
        start, stop = int(choices.offsets[g]), int(choices.offsets[g + 1])
        if limit.weights is not None:
            weights = [_rational(weight, f"a weight {where}") for weight in limit.weights[name]]
            if len(weights) != stop - start:
                raise ProblemError(f"the weights {where} are {len(weights)}: give one for each of its options")
        else:
            share = _rational(limit.members[name] if isinstance(limit.members, Mapping) else 1, f"the share {where}")
            weights = [share * int(size) for size in choices.sizes[start:stop]]
        yield g, weights


def _rational(value: Any, what: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, Rational) or value < 0:
        raise ProblemError(f"{what} is {value!r}: it must be an integer or a Fraction, at least 0")
    return Fraction(int(value.numerator), int(value.denominator))
