"""What weights should be, where the layers before them are rounded already.

In front of a weight `W` a rounded model has inputs `a'` instead of `a`, and the stream that `W` writes to is `s'`
instead of `s`. The weights with which it goes on best are those that minimize `E‖(s + W a) − (s' + Ŵ a')‖²`:

    Ŵ = W + (W E[(a − a') a'ᵀ] + E[(s − s') a'ᵀ]) E[a' a'ᵀ]⁻¹

The first part is the correction of GPTAQ (Li et al. 2025) and Qronos (Zhang et al. 2025), the second the stream's. As
moments are of few tokens, pairs of channels are shrunk, and a part alone is made up for, as in QEP (Arai and Ichikawa
2025): `docs/rounding.md` has what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.gguf.products import Products

__all__ = ["Correction", "Moments"]

Floats = NDArray[np.float32]

_SHARE = 0.5  # of the correction that is made
_SHRINKAGE = 0.1  # of pairs of channels in what is inverted


@dataclass(frozen=True, slots=True)
class Correction:
    """What is added to weights: rows times `shift`, f32[n, n], and of tensors that write to the stream their rows of
    `streams`, name → f32[m, n]."""

    shift: Floats
    streams: Mapping[str, Floats]

    def apply(self, name: str, start: int, rows: Floats) -> Floats:
        """Return what rows of a tensor from `start` on should be, f32[r, n]."""
        wanted = rows + rows @ self.shift
        own = self.streams.get(name)
        return wanted if own is None else wanted + own[start : start + len(rows)]


class Moments:
    """Sums over tokens of what a weight's input and the stream are in two models, the original and a rounded one.

    `width` channels of the input; `streams`: channels that a tensor that reads it writes to the stream, by its name.
    """

    def __init__(self, width: int, streams: Mapping[str, int]) -> None:
        self.tokens = 0
        self._products = Products(width)
        self._shift = np.zeros((width, width), np.float32)
        self._streams = {name: np.zeros((channels, width), np.float32) for name, channels in streams.items()}

    @staticmethod
    def nbytes(width: int, streams: Mapping[str, int]) -> int:
        """Return how many bytes the sums take.

        >>> Moments.nbytes(200, {}) - Products.nbytes(200)
        160000
        """
        return Products.nbytes(width) + 4 * width * (width + sum(streams.values()))

    def additions(self, rows: Floats, missing: Floats, streams: Mapping[str, Floats]) -> list[Callable[[], None]]:
        """Return what adds some tokens, as pieces of work that may run at the same time: the rounded model's `rows` a',
        f32[t, n], what they lack of the original's, a − a', and what the streams lack, s − s', f32[t, m]."""
        self.tokens += len(rows)

        def adding(total: Floats, lacking: Floats) -> Callable[[], None]:
            def add() -> None:
                with np.errstate(all="ignore"):  # what is not finite is seen in the end
                    total.__iadd__(lacking.T @ rows)

            return add

        own = [adding(self._streams[name], lacking) for name, lacking in streams.items()]
        return [*self._products.additions(rows), adding(self._shift, missing), *own]

    def covariance(self) -> Floats:
        """Return E[a' a'ᵀ], f32[n, n]; NaN or infinite where activations were."""
        return self._products.matrix() / np.float32(self.tokens)

    def correction(self, share: float = _SHARE, shrinkage: float = _SHRINKAGE) -> Correction:
        """Return the correction. Takes as many multiplications as inverting a matrix of n channels."""
        covariance = self.covariance().astype(np.float64)
        lacking = np.concatenate([self._shift, *self._streams.values()]).astype(np.float64)
        diagonal = np.diag(covariance)
        roots = np.sqrt(np.where(diagonal > 0, diagonal, 1))  # a channel that was never reached corrects nothing
        covariance /= (1 + shrinkage) * np.outer(roots, roots)
        np.fill_diagonal(covariance, 1)
        solved = np.linalg.solve(covariance, (lacking / roots).T).T * (share / (self.tokens * roots))
        shift, *others = np.split(
            solved.astype(np.float32), np.cumsum([len(roots), *map(len, self._streams.values())])[:-1]
        )
        return Correction(shift, dict(zip(self._streams, others, strict=True)))
