"""The answer of a solver, and its status."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

__all__ = ["Solution", "Status", "Usage", "relative_gap"]


class Status(StrEnum):
    """The reason why the search ended. `Solution.picks` tells whether there is an answer."""

    OPTIMAL = "optimal"  # nothing is better, up to the rounding of one sum of floats
    WITHIN_GAP = "within gap"  # nothing is better by more than the gap that was asked for
    TIME_LIMIT = "time limit"  # the time was up
    EXHAUSTED = "exhausted"  # the method has nothing more to try; another one may


class Usage(NamedTuple):
    """One limit at the answer, in the units of its capacity. `price`: the loss that one unit more would save."""

    name: str
    capacity: int | Fraction
    used: int | Fraction
    price: float

    @property
    def slack(self) -> int | Fraction:
        """Unused part of the capacity, at least 0."""
        return self.capacity - self.used


class Solution(NamedTuple):
    """The best answer found, and the proof of its quality.

    `picks[g]` is the index of group g's option, `None` if no answer was found in time. `loss` is the sum of the losses,
    correctly rounded (infinite without an answer); `bound` is a proven lower bound on the loss of any answer. `bytes`
    is the sum of the options' bytes. `usage` is one entry a limit. `method` found the answer, in `seconds`.
    """

    picks: tuple[int, ...] | None
    status: Status
    loss: float
    bound: float
    bytes: int
    usage: tuple[Usage, ...]
    method: str
    seconds: float

    @property
    def gap(self) -> float:
        """Greatest share of the loss that a better answer might still save: (loss - bound) / loss."""
        return relative_gap(self.loss, self.bound)

    @property
    def prices(self) -> dict[str, float]:
        """Price of each limit, by name: the approximate loss that one more unit of capacity would save."""
        return {usage.name: usage.price for usage in self.usage}


def relative_gap(loss: float, bound: float) -> float:
    """Return (loss - bound) / loss; 0 for a loss of 0, 1 without an answer."""
    if loss == float("inf"):
        return 1.0
    return max(0.0, (loss - bound) / loss) if loss > 0.0 else 0.0
