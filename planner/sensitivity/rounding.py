"""Relative errors of products by rounded activations, as the state holds them (see `planner.measure.rounding`)."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COARSE", "FINE", "NOT_ROUNDED", "Rounding"]

FINE, COARSE = 32, 256  # activations that share a scale: QK8_0 and QK_K of ggml-common.h


class Rounding(NamedTuple):
    """Relative errors of a tensor's product, in the sense of `err_var`, from rounding activations in blocks of 32 and
    of 256."""

    fine: float = 0.0
    coarse: float = 0.0

    def of(self, block: int) -> float:
        """Return the error of a format that rounds activations in blocks of this length; 0: it does not round them."""
        if not block:
            return 0.0
        return self.fine if block == FINE else self.coarse


NOT_ROUNDED = Rounding()
