"""ggml's own kernels, called as they are: what all other quantizers have to agree with, byte for byte.

They abort the process when something is wrong: what goes in has been checked (`kernels.quantize_rows`).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError
from planner.formats.ggml import library
from planner.formats.ggml.formats import Format
from planner.formats.ggml.types import type_of

__all__ = ["address", "dequantize_by_ggml", "has_tables", "prepare_tables", "quantize_by_ggml", "tables_ready"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_IQ3_DIMENSIONS = 4  # of lattices that iq3xs_init_impl builds; those of iq2xs_init_impl have 8


def address(array: NDArray[Any]) -> int:
    """Return where an array's numbers lie."""
    return int(array.ctypes.data)


def quantize_by_ggml(fmt: Format, rows: Floats, weights: Floats | None = None) -> Bytes:
    """Return rows f32[r, n], C-contiguous, in a format, u8[r, fmt.row_bytes(n)], by ggml's kernel; `weights` are
    imatrix values f32[n]. Releases the GIL. Raises KernelError if ggml fails and says so."""
    count, length = rows.shape
    out = np.zeros((count, fmt.row_bytes(length)), dtype=np.uint8)
    if count == 0:
        return out
    prepare_tables((fmt,))
    written = fmt.library.quantize_chunk(
        fmt.id, address(rows), address(out), 0, count, length, None if weights is None else address(weights)
    )
    if written != out.nbytes:
        raise KernelError(f"ggml wrote {written} bytes of {fmt.name} where {out.nbytes} were due.", "")
    return out


def dequantize_by_ggml(fmt: Format, data: Bytes, row_length: int) -> Floats:
    """Return rows of a format, u8[r, fmt.row_bytes(row_length)], C-contiguous, as f32[r, row_length], by ggml's kernel.
    Releases the GIL. Raises KernelError for a type that the library cannot convert."""
    convert = fmt.library.to_float(fmt.id)
    if convert is None:
        raise KernelError(
            f"The ggml library cannot convert {fmt.name} to floats.",
            "Start from an F32, F16 or BF16 model.",
        )
    rows = np.empty((data.shape[0], row_length), dtype=np.float32)
    # Kernels know one row, or blocks with nothing between them
    parts = data.shape[0] if fmt.row_header else min(data.shape[0], 1)
    for part in range(parts):
        convert(address(data[part:]), address(rows[part:]), rows.size // parts)
    return rows


_ready: set[str] = set()
_building = threading.Lock()


def has_tables(fmt: Format) -> bool:
    """Return whether the kernel needs lookup tables that take seconds to build."""
    return type_of(fmt.name).lattice is not None


def tables_ready(fmt: Format) -> bool:
    """Return whether the kernel can start at once."""
    return not has_tables(fmt) or fmt.name in _ready


def prepare_tables(wanted: tuple[Format, ...]) -> None:
    """Build the lookup tables of the formats, cheapest first; returns at once for those already built.

    Takes up to half a minute of one core, without the GIL and without hindering kernels of other formats. A kernel
    whose table is missing builds it itself, and cannot be interrupted: call this from a thread of its own and wait for
    `tables_ready`.
    """
    searching = ((lattice, fmt) for fmt in wanted if (lattice := type_of(fmt.name).lattice) is not None)
    for (dimensions, points), fmt in sorted(searching, key=lambda entry: entry[0]):
        with _building:  # ggml's builders must not run twice at once
            if fmt.name in _ready:
                continue
            if dimensions == _IQ3_DIMENSIONS:
                library.load().iq3_tables(points)
            else:
                library.load().iq2_tables(fmt.id)
            _ready.add(fmt.name)
