"""What is lost where activations are rounded to 8 bits, as llama.cpp does on a CPU to multiply quantized weights.

Such an error adds to that of the weights: both make the product noisy, and the same sensitivity says what that costs.
It does not shrink as the weights become better, and it depends on their format: those with blocks of 256 weights take
activations in blocks of 256 with a common scale (ggml's Q8_K), all others in blocks of 32 (Q8_0 or Q8_1), where a large
activation spoils fewer others.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COARSE", "FINE", "NOT_ROUNDED", "Rounding"]

FINE, COARSE = 32, 256  # activations that share a scale: QK8_0 and QK_K of ggml-common.h


@dataclass(frozen=True, slots=True)
class Rounding:
    """Relative errors of a tensor's product, as `err_var` is one, by the activations in blocks of 32 and of 256."""

    fine: float = 0.0
    coarse: float = 0.0

    def of(self, block: int) -> float:
        """The error of a format whose activations come in such blocks; 0: they are not rounded."""
        return {0: 0.0, FINE: self.fine, COARSE: self.coarse}[block]


NOT_ROUNDED = Rounding()
