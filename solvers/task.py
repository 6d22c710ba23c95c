"""The interface to a solver of the core: it gets a `Task` and returns what it `Found`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from solvers.arrays import FloatArray
from solvers.core import Core

__all__ = ["CoreSolver", "Found", "Task"]


class Task(NamedTuple):
    """A request to minimize the loss of `core`; `losses` [options] are the reduced problem's.

    `hint`: the best known choice, flat indices by group, empty if there is none. `gap`: absolute, in loss; a solver may
    stop that close to the best. `deadline` is a time of `time.monotonic`. The same `seed` and `threads` give the same
    answer, unless time runs out.
    """

    core: Core
    losses: FloatArray
    hint: Mapping[int, int]
    gap: float
    deadline: float
    seed: int
    threads: int

    @property
    def seconds(self) -> float:
        """Seconds left: finite, and not positive when time is up."""
        return min(self.deadline - time.monotonic(), 1e9)


class Found(NamedTuple):
    """The result of a solver. `choice`: flat index by group for the core's groups, or `None` if none below the
    threshold was found.

    `proven`: a lower bound on the excess of any choice over the core's bound. `complete`: neither width nor time cut
    the search short.
    """

    choice: dict[int, int] | None
    proven: float
    complete: bool


CoreSolver = Callable[[Task], Found]
