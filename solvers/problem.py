"""The problem: groups of options, and limits on what the chosen options weigh.

Everything is checked here, once, and laid out in flat arrays: option `j` of group `g` is the element
`offsets[g] + j` of `sizes`, `losses` and of each row of `weights`. Weights are integers. Fractions (an expert tensor
that is read for 8 tokens of 256 counts 1/32 of its bytes) are multiplied by the least common
denominator of their limit, which is kept in `scales`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from numbers import Rational
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import ProblemError

__all__ = ["LARGEST_TOTAL", "FloatArray", "Group", "IntArray", "Limit", "Option", "Problem", "exact_sum"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Sums of weights stay below this, so that no difference of two of them leaves 64 bits.
LARGEST_TOTAL = 2**62
# Sums of losses stay below this: what overflows is then surely more than any sum of losses.
LARGEST_LOSS = 2.0**1010


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a group: `bytes` >= 0, `loss` >= 0 and finite, `label` for people."""

    bytes: int
    loss: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """What gets exactly one of `options`: a tensor, or several that are tied together. One option = a pin."""

    name: str
    options: Sequence[Option]


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """What the chosen options may weigh together: at most `capacity`.

    By default every group counts with its options' bytes. `members` says which groups count (the others
    weigh nothing); as a mapping it also says which share of their bytes. `weights` instead gives
    the weight of every option of every group that counts: by group name, or as one array over all options.
    """

    name: str
    capacity: int | Fraction
    members: Collection[str] | Mapping[str, int | Fraction] | None = None
    weights: Mapping[str, Sequence[int | Fraction]] | IntArray | None = None


class Problem:
    """Choose one option a group so that the sum of losses is least and every limit holds.

    Raises `ProblemError` for what cannot be meant: no options, a negative or non-finite loss, weights that are
    negative or no integers or fractions, sums beyond 2**62, names that repeat or that do not exist.
    """

    def __init__(self, groups: Iterable[Group], limits: Iterable[Limit] = ()) -> None:
        groups = tuple(groups)
        offsets = np.zeros(len(groups) + 1, np.int64)
        np.cumsum([len(group.options) for group in groups], out=offsets[1:])
        options = [(group, option) for group in groups for option in group.options]
        sizes = [_whole(option.bytes, f"bytes of {_where(group, option)}") for group, option in options]
        losses = [_number(option.loss, f"loss of {_where(group, option)}") for group, option in options]
        self._fill(
            offsets,
            np.array(sizes, np.int64),
            np.array(losses, np.float64),
            tuple(limits),
            [group.name for group in groups],
            [option.label for _, option in options],
        )

    @classmethod
    def from_arrays(
        cls,
        offsets: ArrayLike,
        sizes: ArrayLike,
        losses: ArrayLike,
        limits: Iterable[Limit] = (),
        *,
        names: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> Problem:
        """The same from flat arrays, for very many groups: `offsets` int[groups + 1], the others [options].

        Without `names` the groups are called "0", "1", and so on; `labels` is one text an option.
        """
        offsets, sizes, losses = np.asarray(offsets), np.asarray(sizes), np.asarray(losses, np.float64)
        for what, array in (("offsets", offsets), ("sizes", sizes)):
            if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.signedinteger)):
                raise ProblemError(f"{what} must be one-dimensional signed integers, not {array.dtype} {array.shape}")
        if not offsets.size or offsets[0] != 0 or offsets[-1] != sizes.size or losses.shape != sizes.shape:
            raise ProblemError("offsets must go from 0 to the number of options; sizes and losses give one value each")
        problem = cls.__new__(cls)
        count = offsets.size - 1
        problem._fill(
            offsets.astype(np.int64),
            sizes.astype(np.int64),
            losses,
            tuple(limits),
            list(names) if names is not None else [str(g) for g in range(count)],
            list(labels) if labels is not None else None,
        )
        return problem

    def _fill(
        self,
        offsets: IntArray,
        sizes: IntArray,
        losses: FloatArray,
        limits: tuple[Limit, ...],
        names: list[str],
        labels: list[str] | None,
    ) -> None:
        self.offsets, self.sizes, self.losses, self.names = offsets, sizes, losses, names
        self._labels = labels
        self._index = {name: g for g, name in enumerate(names)}
        if len(names) != offsets.size - 1 or (labels is not None and len(labels) != sizes.size):
            raise ProblemError("names must give one text a group, labels one text an option")
        if len(self._index) != len(names):
            raise ProblemError(f"two groups are called {_repeated(names)!r}: names must differ")
        self._check_arrays()
        if len({limit.name for limit in limits}) != len(limits):
            raise ProblemError(f"two limits are called {_repeated([limit.name for limit in limits])!r}")
        rows, scales, capacities = [], [], []
        for limit in limits:
            row, scale = self._weights_of(limit)
            self._check_total(row, f"the weights of limit {limit.name!r}" + (f" (times {scale})" if scale > 1 else ""))
            rows.append(row)
            scales.append(scale)
            capacities.append(_capacity(limit, scale))
        self.limits = limits
        self.weights: IntArray = np.array(rows, np.int64).reshape(len(limits), sizes.size)
        self.scales, self.capacities = tuple(scales), tuple(capacities)
        for array in (self.offsets, self.sizes, self.losses, self.weights):
            array.flags.writeable = False

    def _check_arrays(self) -> None:
        counts = np.diff(self.offsets)
        if counts.size and counts.min() < 1:
            raise ProblemError(f"group {self.names[int(counts.argmin())]!r} has no option: give it at least one")
        bad = ~np.isfinite(self.losses) | (self.losses < 0)
        if bad.any():
            where = self._name_option(int(bad.argmax()))
            raise ProblemError(f"the loss of {where} is {self.losses[bad.argmax()]}: it must be finite and at least 0")
        if (self.sizes < 0).any():
            raise ProblemError(f"the bytes of {self._name_option(int((self.sizes < 0).argmax()))} are negative")
        self._check_total(self.sizes, "the bytes")
        if self.losses.size and math.fsum(np.maximum.reduceat(self.losses, self.offsets[:-1]) / LARGEST_LOSS) > 1.0:
            raise ProblemError(f"the losses add up beyond {LARGEST_LOSS:.2g}: divide them all by something")

    def _check_total(self, row: IntArray, what: str) -> None:
        if row.size and (total := exact_sum(np.maximum.reduceat(row, self.offsets[:-1]))) >= LARGEST_TOTAL:
            raise ProblemError(f"{what} add up to {total}, beyond 2**62: use a coarser unit")

    def _weights_of(self, limit: Limit) -> tuple[IntArray, int]:
        """Integer weights of all options under `limit`, and the factor that made them integers."""
        if limit.weights is not None and limit.members is not None:
            raise ProblemError(f"limit {limit.name!r} gives both members and weights: give one of them")
        if isinstance(limit.weights, np.ndarray):
            row = limit.weights
            if row.shape != self.sizes.shape or not np.issubdtype(row.dtype, np.signedinteger) or (row < 0).any():
                raise ProblemError(f"the weights of limit {limit.name!r} must be one integer >= 0 an option")
            return row.astype(np.int64), 1
        if limit.weights is None and limit.members is None:
            return self.sizes, 1
        exact = self._listed(limit)
        scale = math.lcm(1, *(weight.denominator for row in exact.values() for weight in row))
        row = np.zeros(self.sizes.size, np.int64)
        for g, values in exact.items():
            scaled = [int(weight * scale) for weight in values]
            if max(scaled) >= LARGEST_TOTAL:
                raise ProblemError(f"weights of {self.names[g]!r} in limit {limit.name!r} times {scale} exceed 2**62")
            row[self.offsets[g] : self.offsets[g + 1]] = scaled
        return row, scale

    def _listed(self, limit: Limit) -> dict[int, list[Fraction]]:
        """The exact weights of the groups that `limit` lists, by group."""
        exact: dict[int, list[Fraction]] = {}
        assert not isinstance(limit.weights, np.ndarray)
        for name in limit.weights if limit.weights is not None else limit.members or ():
            g = self.group(name, f"limit {limit.name!r}")
            where = f"of group {name!r} in limit {limit.name!r}"
            if limit.weights is not None:
                values = [_rational(weight, f"a weight {where}") for weight in limit.weights[name]]
                if len(values) != self.offsets[g + 1] - self.offsets[g]:
                    raise ProblemError(f"the weights {where} are {len(values)}: give one for each of its options")
            else:
                shares = limit.members if isinstance(limit.members, Mapping) else {name: 1}
                share = _rational(shares[name], f"the share {where}")
                values = [share * int(size) for size in self.sizes[self.offsets[g] : self.offsets[g + 1]]]
            exact[g] = values
        return exact

    def __len__(self) -> int:
        return len(self.names)

    def group(self, name: str, who: str = "the problem") -> int:
        """The index of the group called `name`; `ProblemError` with near names if there is none."""
        if name in self._index:
            return self._index[name]
        near = get_close_matches(str(name), self.names, 3)
        raise ProblemError(f"{who} has no group {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))

    def option(self, group: int, index: int) -> Option:
        """Option `index` of group `group`."""
        k = int(self.offsets[group]) + index
        return Option(int(self.sizes[k]), float(self.losses[k]), self._labels[k] if self._labels is not None else "")

    def options(self, group: int) -> list[Option]:
        """All options of group `group`, in the order in which they were given."""
        return [self.option(group, j) for j in range(int(self.offsets[group + 1] - self.offsets[group]))]

    def limit(self, name: str) -> int:
        """The index of the limit called `name`."""
        for i, limit in enumerate(self.limits):
            if limit.name == name:
                return i
        raise ProblemError(f"there is no limit {name!r}; there are: {', '.join(x.name for x in self.limits) or 'none'}")

    def only(self, limits: Sequence[int], losses: FloatArray | None = None) -> Problem:
        """The same groups under some of the limits (indices), and with other losses if given. Shares all arrays."""
        other = Problem.__new__(Problem)
        other.__dict__.update(self.__dict__)
        other.limits = tuple(self.limits[i] for i in limits)
        other.scales = tuple(self.scales[i] for i in limits)
        other.capacities = tuple(self.capacities[i] for i in limits)
        other.weights = self.weights[list(limits)]
        other.losses = self.losses if losses is None else losses
        return other

    def with_capacity(self, name: str, capacity: int | Fraction) -> Problem:
        """The same problem with another capacity of one limit. Shares all arrays."""
        i = self.limit(name)
        other = Problem.__new__(Problem)
        other.__dict__.update(self.__dict__)
        limit = replace(self.limits[i], capacity=capacity)
        other.limits = (*self.limits[:i], limit, *self.limits[i + 1 :])
        scaled = _capacity(limit, self.scales[i])
        other.capacities = (*self.capacities[:i], scaled, *self.capacities[i + 1 :])
        return other

    def unscaled(self, limit: int, weight: int) -> int | Fraction:
        """A weight of limit `limit` in the units of its capacity."""
        exact = Fraction(weight, self.scales[limit])
        return exact.numerator if exact.denominator == 1 else exact

    def extremes(self, name: str) -> tuple[int | Fraction, int | Fraction]:
        """The least and the greatest that any choice of options weighs in limit `name`."""
        i = self.limit(name)
        if not len(self):
            return 0, 0
        starts = self.offsets[:-1]
        least, most = (exact_sum(f.reduceat(self.weights[i], starts)) for f in (np.minimum, np.maximum))
        return self.unscaled(i, least), self.unscaled(i, most)

    def _name_option(self, k: int) -> str:
        g = int(np.searchsorted(self.offsets, k, "right")) - 1
        label = self._labels[k] if self._labels is not None and self._labels[k] else str(k - int(self.offsets[g]))
        return f"option {label!r} of group {self.names[g]!r}"


def exact_sum(values: IntArray) -> int:
    """The sum of 64-bit integers, whatever its size."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())


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


def _rational(value: Any, what: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, Rational) or value < 0:
        raise ProblemError(f"{what} is {value!r}: it must be an integer or a Fraction, at least 0")
    return Fraction(int(value.numerator), int(value.denominator))


def _capacity(limit: Limit, scale: int) -> int:
    if isinstance(limit.capacity, bool) or not isinstance(limit.capacity, Rational):
        raise ProblemError(f"the capacity of limit {limit.name!r} is {limit.capacity!r}: give an integer or a Fraction")
    return math.floor(Fraction(int(limit.capacity.numerator), int(limit.capacity.denominator)) * scale)


def _repeated(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
