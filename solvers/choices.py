"""Groups of options, checked and laid out in flat arrays.

Option `j` of group `g` is the element `offsets[g] + j` of `sizes` and `losses`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from solvers.arrays import LARGEST_TOTAL, FloatArray, IntArray, exact_sum
from solvers.errors import ProblemError

__all__ = ["Choices", "Group", "Option", "check_total", "choices_of", "choices_of_arrays", "repeated"]

# Sums of losses stay below this: what overflows is then surely more than any sum of losses.
LARGEST_LOSS = 2.0**1010


class Option(NamedTuple):
    """One way to store a group: `bytes` >= 0, `loss` >= 0 and finite, `label` for people."""

    bytes: int
    loss: float
    label: str = ""


class Group(NamedTuple):
    """A tensor, or several that are tied together: it takes exactly one of `options`. One option makes a pin."""

    name: str
    options: Sequence[Option]


@dataclass(frozen=True, eq=False)
class Choices:
    """All groups: `offsets` [groups + 1], `names` [groups], `sizes`, `losses` and perhaps `labels` [options].

    Raises `ProblemError` for groups without options, repeated names, losses that are negative or not finite, negative
    sizes, and sums that are too large. The arrays become read-only.
    """

    offsets: IntArray
    sizes: IntArray
    losses: FloatArray
    names: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.names) != self.offsets.size - 1 or (
            self.labels is not None and len(self.labels) != self.sizes.size
        ):
            raise ProblemError("names must give one text a group, labels one text an option")
        if len(self.index) != len(self.names):
            raise ProblemError(f"two groups are called {repeated(self.names)!r}: names must differ")
        counts = np.diff(self.offsets)
        if counts.size and counts.min() < 1:
            raise ProblemError(f"group {self.names[int(counts.argmin())]!r} has no option: give it at least one")
        if self.losses.size and not 0.0 <= self.losses.min() <= self.losses.max() < math.inf:
            bad = int((~np.isfinite(self.losses) | (self.losses < 0)).argmax())
            where = self._name_option(bad)
            raise ProblemError(f"the loss of {where} is {self.losses[bad]}: it must be finite and at least 0")
        if self.sizes.size and self.sizes.min() < 0:
            raise ProblemError(f"the bytes of {self._name_option(int(self.sizes.argmin()))} are negative")
        check_total(self.sizes, self.offsets, "the bytes")
        if self.losses.size and math.fsum(np.maximum.reduceat(self.losses, self.offsets[:-1]) / LARGEST_LOSS) > 1.0:
            raise ProblemError(f"the losses add up beyond {LARGEST_LOSS:.2g}: divide them all by something")
        for array in (self.offsets, self.sizes, self.losses):
            array.flags.writeable = False

    @functools.cached_property
    def index(self) -> Mapping[str, int]:
        """Index of each group, by its name."""
        return {name: g for g, name in enumerate(self.names)}

    def group(self, name: str, who: str = "the problem") -> int:
        """Return the index of the group called `name`. Raises `ProblemError`, with near names, if there is none."""
        if name in self.index:
            return self.index[name]
        near = get_close_matches(str(name), self.names, 3)
        raise ProblemError(f"{who} has no group {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))

    def option(self, group: int, index: int) -> Option:
        """Return option `index` of group `group`."""
        k = int(self.offsets[group]) + index
        return Option(int(self.sizes[k]), float(self.losses[k]), self.labels[k] if self.labels is not None else "")

    def _name_option(self, k: int) -> str:
        g = int(np.searchsorted(self.offsets, k, "right")) - 1
        label = self.labels[k] if self.labels is not None and self.labels[k] else str(k - int(self.offsets[g]))
        return f"option {label!r} of group {self.names[g]!r}"


def choices_of(groups: Iterable[Group]) -> Choices:
    """Lay groups out in arrays. Raises `ProblemError` for values that are not numbers, and as `Choices`."""
    groups = tuple(groups)
    offsets = np.zeros(len(groups) + 1, np.int64)
    np.cumsum([len(group.options) for group in groups], out=offsets[1:])
    options = [(group, option) for group in groups for option in group.options]
    sizes = [_whole(option.bytes, f"bytes of {_where(group, option)}") for group, option in options]
    losses = [_number(option.loss, f"loss of {_where(group, option)}") for group, option in options]
    return Choices(
        offsets,
        np.array(sizes, np.int64),
        np.array(losses, np.float64),
        tuple(group.name for group in groups),
        tuple(option.label for _, option in options),
    )


def choices_of_arrays(
    offsets: ArrayLike, sizes: ArrayLike, losses: ArrayLike, names: Sequence[str] | None, labels: Sequence[str] | None
) -> Choices:
    """Copy a caller's arrays. Raises `ProblemError` for other types or shapes, and as `Choices`."""
    offsets, sizes, losses = np.asarray(offsets), np.asarray(sizes), np.array(losses, np.float64)
    for what, array in (("offsets", offsets), ("sizes", sizes)):
        if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.signedinteger)):
            raise ProblemError(f"{what} must be one-dimensional signed integers, not {array.dtype} {array.shape}")
    if not offsets.size or offsets[0] != 0 or offsets[-1] != sizes.size or losses.shape != sizes.shape:
        raise ProblemError("offsets must go from 0 to the number of options; sizes and losses give one value each")
    return Choices(
        offsets.astype(np.int64),
        sizes.astype(np.int64),
        losses,
        tuple(names) if names is not None else tuple(map(str, range(offsets.size - 1))),
        tuple(labels) if labels is not None else None,
    )


def check_total(row: IntArray, offsets: IntArray, what: str) -> None:
    """Raise `ProblemError` if the heaviest choice under `row` [options] is not below 2**62."""
    if row.size and (total := exact_sum(np.maximum.reduceat(row, offsets[:-1]))) >= LARGEST_TOTAL:
        raise ProblemError(f"{what} add up to {total}, beyond 2**62: use a coarser unit")


def repeated(names: Iterable[str]) -> str:
    """Return the first repeated name; there has to be one."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _where(group: Group, option: Option) -> str:
    return f"option {option.label or list(group.options).index(option)!r} of group {group.name!r}"


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ProblemError(f"the {what} are {value!r}: they must be an integer")
    if not 0 <= value < LARGEST_TOTAL:
        raise ProblemError(f"the {what} are {value}: they must be at least 0 and below 2**62")
    return int(value)


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ProblemError(f"the {what} is {value!r}: it must be a number that a float can hold") from None
