"""One entry of an importance matrix, and the meaning of zeros in it.

Its `values` are, bit for bit, what llama-quantize makes of the file (`load_imatrix` in its `quantize.cpp`): sums over
counts in float32, and ones for an expert that was never activated. A zero among them says that no activation reached
the channel while the imatrix was made, not that the channel has no influence.

Values are computed from the mapped file on demand: the imatrix of a large mixture of experts takes a gigabyte, of which
one tensor is needed at a time.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import FAINTEST_WEIGHT

__all__ = ["GAPS_VERSION", "STREAM", "Entry", "Floats", "StreamSums"]

Floats = NDArray[np.float32]

GAPS_VERSION = 1  # raise it when the values imputed to unreached channels would change

STREAM = (".stream_sum2", ".stream_sum", ".stream_counts", ".stream")  # after a tensor's name in a file


@dataclass(slots=True)
class StreamSums:
    """What a tensor that writes to the residual stream reads, each token weighted by `w = 1/|s|²`, `s` being the stream
    after the write: Σ w a² and Σ w a, f32[values], and `weights`, Σ w of the rows summed, f32[experts].

    `stream` is of all tokens, f32[2 + width of the stream]: Σ w, their number, and Σ s/|s|.
    """

    sum2: Floats
    sums: Floats
    weights: Floats
    stream: Floats

    @classmethod
    def zeros(cls, values: int, experts: int, width: int) -> StreamSums:
        """Return empty sums of `values` values in all, for a stream of `width` channels."""
        return cls(*(np.zeros(size, np.float32) for size in (values, values, experts, 2 + width)))

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        """All of them."""
        return self.sum2, self.sums, self.weights, self.stream

    @property
    def known(self) -> bool:
        """False if no token has been seen."""
        return bool(self.stream[0] > 0 and self.stream[1] > 0)

    @property
    def energy(self) -> float:
        """The harmonic mean of |s|² over tokens."""
        return float(self.stream[1]) / float(self.stream[0])

    @property
    def varying(self) -> float:
        """The share of the normalized stream's energy that varies between tokens, `1 - |mean of s/|s||²`."""
        mean = self.stream[2:].astype(np.float64) / float(self.stream[1])
        return max(1.0 - float(mean @ mean), 0.0)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weighted mean squares and means, f64[experts, n]; zeros for experts without tokens."""
        weights = self.weights.astype(np.float64)[:, None]
        shares = np.divide(1.0, weights, out=np.zeros_like(weights), where=weights > 0)
        sum2, sums = (array.reshape(len(weights), -1).astype(np.float64) for array in (self.sum2, self.sums))
        return sum2 * shares, sums * shares

    def add(self, other: StreamSums) -> None:
        """Add other sums. Raises ValueError if they are of another size."""
        for own, more in zip(self.arrays, other.arrays, strict=True):
            if len(own) != len(more):
                raise ValueError(f"has a stream of other sizes: {len(more):,} values, not {len(own):,}")
            own += more


class Entry:
    """The file's values for one tensor, `n` of them for each of its experts (1 for a plain matrix).

    `counts`: f64[experts], the tokens that each expert saw (in a legacy file: calls, one number for all).
    """

    def __init__(
        self,
        sum2: Floats,
        sums: Floats | None,
        counts: NDArray[np.float64],
        fill: float | None = 1.0,
        stream: StreamSums | None = None,
    ) -> None:
        self._sum2 = sum2  # f32[experts, n], views of the mapped file
        self._sums = sums
        self.counts = counts
        self.stream = stream
        self._fill = fill  # the value of an expert without counts; None: its sums as they are (legacy)

    @property
    def shape(self) -> tuple[int, int]:
        """Experts and values for each."""
        return self._sum2.shape[0], self._sum2.shape[1]

    @property
    def has_means(self) -> bool:
        """True if the file holds sums of activations for this tensor."""
        return self._sums is not None

    @property
    def raw_sum2(self) -> Floats:
        """f32[experts, n]: sums of squares as the file has them (of a legacy file: means times calls)."""
        return self._sum2

    @property
    def raw_sums(self) -> Floats | None:
        """f32[experts, n]: sums of activations as the file has them, or None."""
        return self._sums

    @property
    def values(self) -> Floats:
        """f32[experts, n]: mean squares; ones for an expert that was never activated."""
        return _per_count(self._sum2, self.counts, self._fill)

    @property
    def means(self) -> Floats | None:
        """f32[experts, n]: means, zeros for an expert that was never activated; None if the file has no sums."""
        return None if self._sums is None else _per_count(self._sums, self.counts, 0.0)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """bool[experts, n]: the channels that an activation reached."""
        squares = _per_count(self._sum2, self.counts, None if self._fill is None else 0.0)
        return np.asarray(squares >= FAINTEST_WEIGHT)

    @functools.cached_property
    def gaps(self) -> int:
        """Number of channels that no activation reached, not counting experts whose count is zero; all channels if none
        was reached."""
        unseen = ~self.seen
        if not unseen.all() and self._fill is not None:
            unseen[self.counts == 0] = False
        return int(np.count_nonzero(unseen))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over values, means and counts, and what is known of the stream."""
        sha = hashlib.sha256(repr(self.shape).encode())
        sha.update(self.values.tobytes())
        means = self.means
        sha.update(b"" if means is None else means.tobytes())
        sha.update(self.counts.tobytes())
        for array in () if self.stream is None else self.stream.arrays:
            sha.update(array.tobytes())
        return sha.hexdigest()

    @property
    def key(self) -> str:
        """Cache key of everything computed from the entry: the digest, and, if there are gaps, the version of their
        treatment."""
        return f"{self.digest} gaps {GAPS_VERSION}" if self.gaps else self.digest


def _per_count(sums: Floats, counts: NDArray[np.float64], fill: float | None) -> Floats:
    # float32 over float32, as in load_imatrix
    divisors = counts.astype(np.float32)[:, None]
    result: Floats = np.divide(sums, np.maximum(divisors, np.float32(1)), dtype=np.float32)
    if fill is not None:
        result[divisors[:, 0] == 0] = fill
    return result
