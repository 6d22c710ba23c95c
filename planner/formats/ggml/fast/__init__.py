"""ggml's bytes in a fraction of the time: its quantizers, compiled for this processor, many blocks side by side.

A module here has a function for each of its formats, by the format's name in small letters, that takes `rows`,
f32[r, n], C-contiguous; `weights`, f32[n], imatrix values, or an empty array where there are none; and `out`,
u8[r, bytes], into which it puts what ggml's kernel would; `halves` makes floats of F16. Nothing is loaded before it
pays, and nothing is used that does not agree with the loaded ggml to the last byte (`agreement`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from planner.compiled.loading import found, has_compiler, loaded, spending, wish
from planner.errors import KernelError
from planner.formats.ggml.fast.agreement import agrees, agrees_unasked, proven
from planner.formats.ggml.formats import Format
from planner.formats.ggml.reference import dequantize_by_ggml, quantize_by_ggml

__all__ = ["MODULES", "WITHOUT_IMATRIX", "Quantizer", "dequantize", "quantize", "quantizer", "widener"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Quantizer = Callable[[Floats, Floats, Bytes], None]
Widener = Callable[[NDArray[np.uint16], Floats], None]

MODULES: Mapping[str, str] = MappingProxyType(
    {"q2_K": "qkx", "q4_K": "qkx", "q5_K": "qkx", "q4_1": "qkx", "q5_1": "qkx"}
    | {"q3_K": "qx", "q6_K": "qx", "q4_0": "qx", "q5_0": "qx", "iq4_nl": "iq4", "iq4_xs": "iq4"}
    | {"iq1_s": "iq1", "iq1_m": "iq1m", "iq2_xxs": "iq2", "iq2_xs": "iq2", "iq2_s": "iq2"}
    | {"iq3_xxs": "iq3", "iq3_s": "iq3"}
)
"""Formats that are quantized here, and the module that does it."""
WITHOUT_IMATRIX: frozenset[str] = frozenset(
    ("q2_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs", "iq1_m", "iq2_s", "iq3_xxs", "iq3_s")
)
"""Those of them that are quantized here without an imatrix too; for the others ggml does that."""

_NONE = np.empty(0, np.float32)
_HALVES = "halves"  # what is kept of making floats of F16


def quantize(fmt: Format, rows: Floats, weights: Floats | None) -> Bytes:
    """Return rows f32[r, n], C-contiguous, in a format, u8[r, bytes], with imatrix values f32[n] or None, by ours or by
    ggml's kernel. Releases the GIL. Raises KernelError if ggml fails and says so."""
    function = _chosen(fmt) if weights is not None or fmt.name in WITHOUT_IMATRIX else None
    if function is None:
        with spending(fmt.name):
            return quantize_by_ggml(fmt, rows, weights)
    out = np.zeros((rows.shape[0], fmt.row_bytes(rows.shape[1])), dtype=np.uint8)
    if out.size:
        function(rows, _NONE if weights is None else weights, out)
    return out


def at_once(fmt: Format) -> bool:
    """Return whether a lattice type is quantized here from the first row on, so that ggml need not build its tables."""
    return fmt.name in MODULES and wish() != "ggml" and found(fmt.name) is not False and has_compiler() and proven(fmt)


def dequantize(fmt: Format, data: Bytes, row_length: int) -> Floats:
    """Return rows u8[r, bytes], C-contiguous, of a format as f32[r, row_length], by ours or by ggml's kernel. Releases
    the GIL."""
    if fmt.name != "f16":
        return dequantize_by_ggml(fmt, data, row_length)
    halves = data.reshape(-1).view(np.uint16)
    function = loaded(_HALVES, lambda: widener(fmt)) if halves.flags.aligned else None
    if function is None:
        with spending(_HALVES):
            return dequantize_by_ggml(fmt, data, row_length)
    rows = np.empty((data.shape[0], row_length), np.float32)
    halves.flags.writeable = False  # as a mapped file is: compiled once, for both
    function(halves, rows.reshape(-1))
    return rows


def _chosen(fmt: Format) -> Quantizer | None:
    """Return our quantizer, or None for ggml's."""
    return loaded(fmt.name, lambda: quantizer(fmt), soon=at_once(fmt)) if fmt.name in MODULES else None


def widener(fmt: Format) -> Widener | None:
    """Return what makes floats of F16, which `fmt` is, compiled; None where numba is missing or fails, or it
    differs for any half."""
    every = np.arange(1 << 16, dtype=np.uint16)
    expected = dequantize_by_ggml(fmt, every.view(np.uint8)[None], every.size)[0]
    every.flags.writeable = False
    try:
        function: Widener = importlib.import_module(f"{__name__}.halves").widen
        out = np.empty_like(expected)
        function(every, out)
    except Exception:  # as in `quantizer`
        return None
    return function if np.array_equal(out.view(np.uint32), expected.view(np.uint32)) else None


def quantizer(fmt: Format) -> Quantizer | None:
    """Return what quantizes to one of `MODULES`, compiled; None where numba is missing or fails, or bytes differ."""
    try:
        module = importlib.import_module(f"{__name__}.{MODULES[fmt.name]}")
        function: Quantizer = getattr(module, fmt.name.lower())
        agreed = agrees_unasked(fmt, function) if proven(fmt) else agrees(fmt, function, fmt.name in WITHOUT_IMATRIX)
    except KernelError:
        raise
    except Exception:  # whatever numba of another version stumbles over, ggml can do it
        return None
    return function if agreed else None
