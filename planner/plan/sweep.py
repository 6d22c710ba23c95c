"""All sizes at once: the files that lose least for their size, wherever the lower convex hull has a corner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from planner.plan.candidates import Candidate, Candidates
from planner.sensitivity import Link
from planner.sizes import align
from state import Inventory

if TYPE_CHECKING:
    from solvers import Frontier

__all__ = ["Sweep"]


@dataclass(frozen=True)
class Sweep:
    """Corners of the hull of (bytes of the file, loss): no recipe that obeys the rules lies below the lines between
    them, and each is itself the best recipe of its size. `link` tells the divergence of a loss, None without passes."""

    inventory: Inventory
    candidates: Candidates
    frontier: Frontier
    source: str
    link: Link | None

    @property
    def overhead(self) -> int:
        """Bytes of the file whatever is chosen: metadata, and the tensors that stay as they are."""
        fixed = sum(align(tensor.nbytes, self.inventory.alignment) for tensor in self.candidates.fixed)
        return self.inventory.header_bytes + fixed

    def size(self, corner: int) -> int:
        """Return the bytes of the file at a corner."""
        return self.overhead + int(self.frontier.weights[corner])

    def bpw(self, corner: int) -> float:
        """Return the bits of tensor data per weight of the file at a corner."""
        nbytes = sum(tensor.nbytes for tensor in self.candidates.fixed)
        nbytes += sum(entry.nbytes for entry in self._chosen(corner))
        return float(Fraction(8 * nbytes, sum(tensor.elements for tensor in self.inventory.tensors)))

    def _chosen(self, corner: int) -> Iterator[Candidate]:
        for group, pick in zip(self.candidates.groups, self.frontier.picks(corner), strict=True):
            yield from group.options[pick]
