"""All sizes at once: the files that lose least for their size, wherever the lower convex hull has a corner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from planner.plan.candidates import Candidates
from planner.sensitivity import Link
from planner.sizes import align
from state import Inventory

if TYPE_CHECKING:
    from solvers import Frontier, Solution

__all__ = ["Sweep"]


@dataclass(frozen=True)
class Sweep:
    """Corners of the hull of (bytes of the file, loss): no recipe that obeys the rules lies below the lines between
    them, and each is itself the best recipe of its size. `link` tells the divergence of a loss, None without passes.

    Between corners, `best` solves for at most so many bytes of choices, `smallest` for a loss; None where none is so
    small or loses so little.
    """

    inventory: Inventory
    candidates: Candidates
    frontier: Frontier
    best: Callable[[int], Solution | None]
    smallest: Callable[[float], Solution | None]
    source: str
    link: Link | None

    @property
    def overhead(self) -> int:
        """Bytes of the file whatever is chosen: metadata, and the tensors that stay as they are."""
        fixed = sum(align(tensor.nbytes, self.inventory.alignment) for tensor in self.candidates.fixed)
        return self.inventory.header_bytes + fixed

    def bpw(self, picks: Sequence[int]) -> float:
        """Return the bits of tensor data per weight of a choice."""
        nbytes = sum(tensor.nbytes for tensor in self.candidates.fixed)
        for group, pick in zip(self.candidates.groups, picks, strict=True):
            nbytes += sum(entry.nbytes for entry in group.options[pick])
        return float(Fraction(8 * nbytes, sum(tensor.elements for tensor in self.inventory.tensors)))
