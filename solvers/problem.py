"""The problem: groups of options, and limits on the total weight of the chosen options.

Everything is checked when a problem is made, and laid out in flat arrays: option `j` of group `g` is the element
`offsets[g] + j` of `sizes`, `losses` and of each row of `weights`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from solvers.arrays import FloatArray, IntArray, exact_sum
from solvers.choices import Choices, Group, Option, choices_of, choices_of_arrays, repeated
from solvers.errors import ProblemError
from solvers.limits import Limit, scaled_capacity, scaled_weights

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one option a group so that the sum of losses is least and every limit holds.

    Made by `from_groups` or `from_arrays`. `weights` [limits, options] are integers: those of limit `i` and
    `capacities[i]` are its own times `scales[i]`.
    """

    choices: Choices
    limits: tuple[Limit, ...]
    weights: IntArray
    scales: tuple[int, ...]
    capacities: tuple[int, ...]

    def __post_init__(self) -> None:
        names = [limit.name for limit in self.limits]
        if len(set(names)) != len(names):
            raise ProblemError(f"two limits are called {repeated(names)!r}")
        count = len(names)
        if self.weights.shape != (count, self.sizes.size) or not len(self.scales) == len(self.capacities) == count:
            raise ProblemError("weights must give one row a limit and one value an option")
        self.weights.flags.writeable = False

    @classmethod
    def from_groups(cls, groups: Iterable[Group], limits: Iterable[Limit] = ()) -> Problem:
        """Make a problem of `Group`s.

        Raises `ProblemError` for a group without options, a loss that is negative or not finite, weights that are
        negative or neither integers nor fractions, sums beyond 2**62, and names that repeat or do not exist.
        """
        return cls._under(choices_of(groups), limits)

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
        """Make a problem of flat arrays, for very many groups: `offsets` int[groups + 1], the others [options].

        Without `names` the groups are called "0", "1", and so on; `labels` is one text an option. The arrays are
        copied. Raises `ProblemError` as `from_groups` does, and for arrays of other types or shapes.
        """
        return cls._under(choices_of_arrays(offsets, sizes, losses, names, labels), limits)

    @classmethod
    def _under(cls, choices: Choices, limits: Iterable[Limit]) -> Problem:
        limits = tuple(limits)
        rows, scales, capacities = [], [], []
        for limit in limits:
            row, scale = scaled_weights(limit, choices)
            rows.append(row)
            scales.append(scale)
            capacities.append(scaled_capacity(limit, scale))
        weights = np.array(rows, np.int64).reshape(len(limits), choices.sizes.size)
        return cls(choices, limits, weights, tuple(scales), tuple(capacities))

    @property
    def offsets(self) -> IntArray:
        """Flat index of the first option of each group, then the number of options: [groups + 1]."""
        return self.choices.offsets

    @property
    def sizes(self) -> IntArray:
        """Bytes [options]."""
        return self.choices.sizes

    @property
    def losses(self) -> FloatArray:
        """Losses [options]."""
        return self.choices.losses

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return self.choices.names

    def __len__(self) -> int:
        return len(self.names)

    def group(self, name: str) -> int:
        """Return the index of the group called `name`. Raises `ProblemError`, with near names, if there is none."""
        return self.choices.group(name)

    def option(self, group: int, index: int) -> Option:
        """Return option `index` of group `group`."""
        return self.choices.option(group, index)

    def options(self, group: int) -> list[Option]:
        """Return all options of group `group`, in the order given."""
        return [self.option(group, j) for j in range(int(self.offsets[group + 1] - self.offsets[group]))]

    def limit(self, name: str) -> int:
        """Return the index of the limit called `name`. Raises `ProblemError` if there is none."""
        for i, limit in enumerate(self.limits):
            if limit.name == name:
                return i
        raise ProblemError(f"there is no limit {name!r}; there are: {', '.join(x.name for x in self.limits) or 'none'}")

    def only(self, limits: Sequence[int], losses: FloatArray | None = None) -> Problem:
        """Return the same groups under some of the limits (indices), and with other `losses` [options] if given.

        Raises `ProblemError` for losses that are negative or not finite.
        """
        return replace(
            self,
            choices=self.choices if losses is None else replace(self.choices, losses=losses),
            limits=tuple(self.limits[i] for i in limits),
            weights=self.weights[list(limits)],
            scales=tuple(self.scales[i] for i in limits),
            capacities=tuple(self.capacities[i] for i in limits),
        )

    def with_capacity(self, name: str, capacity: int | Fraction) -> Problem:
        """Return the same problem with another capacity of the limit called `name`; all arrays are shared.

        Raises `ProblemError` if there is no such limit, or for a capacity that is neither an integer nor a fraction.
        """
        i = self.limit(name)
        limit = replace(self.limits[i], capacity=capacity)
        scaled = scaled_capacity(limit, self.scales[i])
        return replace(
            self,
            limits=(*self.limits[:i], limit, *self.limits[i + 1 :]),
            capacities=(*self.capacities[:i], scaled, *self.capacities[i + 1 :]),
        )

    def unscaled(self, limit: int, weight: int) -> int | Fraction:
        """Return a weight of limit `limit` in the units of its capacity."""
        exact = Fraction(weight, self.scales[limit])
        return exact.numerator if exact.denominator == 1 else exact

    def extremes(self, name: str) -> tuple[int | Fraction, int | Fraction]:
        """Return the least and the greatest weight of any choice of options under the limit called `name`.

        Raises `ProblemError` if there is no such limit.
        """
        i = self.limit(name)
        if not len(self):
            return 0, 0
        starts = self.offsets[:-1]
        least, most = (exact_sum(f.reduceat(self.weights[i], starts)) for f in (np.minimum, np.maximum))
        return self.unscaled(i, least), self.unscaled(i, most)
