"""What a solver answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

__all__ = ["Solution", "Status", "Usage", "relative_gap"]


class Status(StrEnum):
    """Why the search ended. Whether there is an answer is another fact: `Solution.picks`."""

    OPTIMAL = "optimal"  # nothing is better, up to the rounding of one sum of floats
    WITHIN_GAP = "within gap"  # nothing is better by more than the gap that was asked for
    TIME_LIMIT = "time limit"  # the time was up
    EXHAUSTED = "exhausted"  # the method has nothing more to try; another one may


@dataclass(frozen=True, slots=True)
class Usage:
    """One limit at the answer, in the units of its capacity. `price`: what one unit more would save in loss."""

    name: str
    capacity: int | Fraction
    used: int | Fraction
    price: float

    @property
    def slack(self) -> int | Fraction:
        """What is left of the capacity, at least 0."""
        return self.capacity - self.used


@dataclass(frozen=True, slots=True)
class Solution:
    """The best answer found, and the proof of how good it is.

    `picks[g]` is the index of group g's option, `None` if no answer was found in time. `loss` is the sum of the losses,
    correctly rounded (infinite without an answer); no answer whatever has less than `bound`. `bytes` is the sum of
    the options' bytes. `usage` is one entry a limit. `method` is what found the answer, `seconds` the time.
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
        """How much of the loss might still be saved at the very most, as a share: (loss - bound) / loss."""
        return relative_gap(self.loss, self.bound)

    @property
    def prices(self) -> dict[str, float]:
        """The price of each limit by name: the loss that one unit of capacity more would save, about."""
        return {usage.name: usage.price for usage in self.usage}


def relative_gap(loss: float, bound: float) -> float:
    """(loss - bound) / loss; 0 for a loss of 0, 1 without an answer."""
    if loss == float("inf"):
        return 1.0
    return max(0.0, (loss - bound) / loss) if loss > 0.0 else 0.0
