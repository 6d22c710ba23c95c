"""The three parts of a tensor's relative error."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ErrorParts"]


class ErrorParts(NamedTuple):
    """Relative error from the varying and from the mean part of ordinary channels, and from massive channels, each
    relative to its own energy (docs/design.md); or loss, or energy, per unit of each. Of a tied embedding whose error
    is taken in the logits, `massive` is the error of its rows as they are, as which they are looked up."""

    variance: float
    mean: float
    massive: float

    @property
    def total(self) -> float:
        """Return the sum over ordinary channels."""
        return self.variance + self.mean
