"""Refine quantized rows against the covariance of their inputs: better codes and scales in the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError
from planner.formats.ggml.formats import Format
from planner.formats.ggml.kernels import dequantize_rows
from planner.formats.ggml.refine.codes import Codes
from planner.formats.ggml.refine.lattices import LATTICES
from planner.formats.ggml.refine.layouts import LAYOUTS, Layout, half_floats

__all__ = ["REFINEMENT_VERSION", "SHRINKAGE", "Metric", "can_refine", "pair_errors", "refine_rows", "require_compiler"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]

SHRINKAGE = 1.0
"""λ by which off-diagonal covariances are shrunk: the best, or within 3 % of it, on the models that were tried."""
REFINEMENT_VERSION = 4
"""Raise it when a code would change."""
_PANEL = 64
_SWEEPS = 4
_LEAST, _MOST = 2.0**-10, 2.0  # by which a row is made longer: less is half a step of a half float
_CLEARLY = 1 - 1e-4  # of an error, whose sums are in float32


@dataclass(frozen=True, slots=True)
class Metric:
    """What codes of rows with n weights are refined by: d H dᵀ, with `matrix` H, f32[n, n], symmetric, in which pairs
    count 1 / (1 + `shrinkage`) of what they were found to be."""

    matrix: Floats
    shrinkage: float = 0.0

    @classmethod
    def of(cls, covariance: Floats, shrinkage: float = SHRINKAGE) -> Metric:
        """Return the metric of a covariance E[a aᵀ], f32[n, n], whose other half than the diagonal counts
        1 / (1 + shrinkage): what few tokens say of pairs is half chance. Changes `covariance`."""
        diagonal = np.diag(covariance).copy()
        covariance *= np.float32(1 / (1 + shrinkage))
        np.fill_diagonal(covariance, diagonal)
        return cls(np.ascontiguousarray(covariance), shrinkage)


def require_compiler() -> None:
    """Raise KernelError where the loops cannot be compiled, as numba is missing or does not go with other packages."""
    try:
        import planner.formats.ggml.refine.kernels  # noqa: F401
    except ImportError as error:
        raise KernelError(
            f"numba is needed to refine codes, and cannot be loaded: {error}.",
            "Install one that goes with this Python and numpy: pip install --upgrade numba",
        ) from error


def can_refine(fmt: Format) -> bool:
    """Return whether the codes of a format can be refined."""
    return fmt.name in LAYOUTS or fmt.name in LATTICES


def refine_rows(
    fmt: Format, rows: Floats, data: Bytes, metric: Metric, sweeps: int = _SWEEPS, *, short: bool = False
) -> Bytes:
    """Return rows in a format, u8[r, bytes], refined from `data`: codes of `rows`, f32[r, n].

    Codes of the least error are too short: what they lack is in part what they are. So each row is made as long as it
    should be in its own direction, where half floats of its blocks allow that, unless it may be `short`. No row's error
    d H dᵀ is larger than before; one that cannot be improved keeps its bytes. The same input gives the same bytes on
    every machine. Releases the GIL most of the time.
    """
    from planner.formats.ggml.refine import kernels, products  # load a compiler

    layout, width, h = (LAYOUTS.get(fmt.name) or LATTICES[fmt.name])(), rows.shape[1], metric.matrix
    before = dequantize_rows(fmt, data, width) - rows
    gradient = np.empty_like(before)
    products.products(before, h, gradient)
    error = products.dots(before, gradient)
    codes = Codes(layout, data, fmt.block_bytes)
    gains = kernels.descend(codes.state, codes.choices, gradient, h, max(_PANEL, layout.group), sweeps)
    out = codes.written()
    after = dequantize_rows(fmt, out, width) - rows
    doubtful = gains <= _chance(before, after, h)
    if doubtful.any():
        doubtful &= products.changes(before, after, h, doubtful) >= 0
        out[doubtful] = data[doubtful]
    if not short and layout.halves:
        longer, most = _longer(fmt, layout, rows, out, after, gradient, h)
        chosen = ~doubtful & (most < _CLEARLY * error)
        out[chosen] = longer[chosen]
    return out


def _longer(
    fmt: Format, layout: Layout, rows: Floats, data: Bytes, errors: Floats, gradient: Floats, h: Floats
) -> tuple[Bytes, Doubles]:
    """Return rows u8[r, bytes] made as long as they should be, so that w H ŵᵀ = w H wᵀ, by half floats of their blocks,
    and what their errors are at most, f64[r]: infinite for rows that are to stay as they are. `errors` d and `gradient`
    d H, f32[r, n], are those before.

    What is stored is f ŵ + ρ, where half floats are rounded by ρ. With s = f ŵ + ρ - ŵ, the error is
    d H dᵀ + 2 s H dᵀ + s H sᵀ, and the last at most (|f - 1| √(ŵ H ŵᵀ) + Σ |ρ_i| √H_ii)².
    """
    from planner.formats.ggml.refine import products  # loads a compiler

    product = np.empty_like(rows)
    products.products(rows, h, product)
    own, across, error = products.dots(rows, product), products.dots(rows, gradient), products.dots(errors, gradient)
    with np.errstate(all="ignore"):
        factors = own / (own + across)
        chosen = (np.abs(factors - 1) >= _LEAST) & (factors > 1 / _MOST) & (factors < _MOST)
    more = np.where(chosen, factors, 1.0) - 1
    reached = np.diag(h).reshape(-1, layout.block).any(axis=1)
    longer = _multiplied(layout, data, np.where(reached, 1 + more[:, None], 1.0), fmt.block_bytes)
    steps = dequantize_rows(fmt, longer, rows.shape[1]) - rows - errors
    off = np.abs(steps - more[:, None].astype(np.float32) * (rows + errors))
    rounded = products.dots(off, np.tile(np.sqrt(np.diag(h)), (len(rows), 1)))
    length = np.sqrt(np.maximum(own + 2 * across + error, 0))
    most = error + 2 * products.dots(steps, gradient) + (np.abs(more) * length + rounded) ** 2
    return longer, np.where(chosen, most, np.inf)


def _multiplied(layout: Layout, data: Bytes, factors: Doubles, block_bytes: int) -> Bytes:
    """Return rows u8[r, bytes] with their blocks multiplied by factors f64[r, blocks], as half floats can."""
    blocks = data.reshape(-1, block_bytes).copy()
    moved = np.flatnonzero(factors != 1)
    some, each = blocks[moved], factors.reshape(-1)[moved, None]
    for field in layout.halves:
        numbers = field.read(some)
        with np.errstate(over="ignore"):
            longer = (half_floats(numbers) * each).astype(np.float16)
        field.write(some, np.where(np.isfinite(longer), longer.view(np.uint16), numbers))
    blocks[moved] = some
    return blocks.reshape(data.shape)


def pair_errors(errors: Floats, metric: Metric) -> Doubles:
    """Return the part of d H dᵀ that is of pairs of weights, Σ_{i≠j} d_i H_ij d_j, f64[r], of errors f32[r, n], with
    pairs as they were found."""
    from planner.formats.ggml.refine import products  # loads a compiler

    gradient = np.empty_like(errors)
    products.products(errors, metric.matrix, gradient)
    own = errors * np.diag(metric.matrix)
    return np.asarray((1 + metric.shrinkage) * np.einsum("ij,ij->i", errors, gradient - own, dtype=np.float64))


def _chance(before: Floats, after: Floats, matrix: Floats) -> Doubles:
    """Return how far off the gain of each row can be, f64[r], as its sums are in float32.

    A sum of n products of errors d and a row of H is wrong by at most m u Σ |H_ij d_i| (Higham, Accuracy and Stability
    of Numerical Algorithms, 4.2, for blocked sums), where |H_ij| ≤ √(H_ii H_jj); and as much again for all steps. It
    may differ from machine to machine: which rows are looked at again depends on it, and not what becomes of them.
    """
    from planner.formats.ggml.refine.products import DEEP  # loads a compiler

    root = np.sqrt(np.diag(matrix))
    terms = 2 * (DEEP + len(root) / DEEP) * float(np.finfo(np.float32).eps)
    size = np.abs(before) @ root
    moved = np.abs(after - before) @ root
    return np.asarray(terms * (size + moved) * moved, np.float64)
