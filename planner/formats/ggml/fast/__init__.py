"""ggml's bytes in a fraction of the time: its quantizers, compiled for this processor, many blocks side by side.

A module here has a function for each of its formats, by the format's name in small letters, that takes `rows`,
f32[r, n], C-contiguous; `weights`, f32[n], imatrix values, or an empty array where there are none; and `out`,
u8[r, bytes], into which it puts what ggml's kernel would. Nothing is loaded before it pays, and nothing is used that
does not agree with the loaded ggml to the last byte (`agreement`).
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError
from planner.formats.ggml.fast.agreement import agrees
from planner.formats.ggml.formats import Format

__all__ = ["MODULES", "WITHOUT_IMATRIX", "Quantizer", "quantize", "quantizer"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Quantizer = Callable[[Floats, Floats, Bytes], None]

MODULES: Mapping[str, str] = MappingProxyType(
    {
        "iq4_nl": "iq4",
        "iq4_xs": "iq4",
        "q2_K": "qkx",
        "q3_K": "qx",
        "q4_0": "qx",
        "q4_1": "qkx",
        "q4_K": "qkx",
        "q5_0": "qx",
        "q5_1": "qkx",
        "q5_K": "qkx",
        "q6_K": "qx",
    }
)
"""Formats that are quantized here, and the module that does it."""
WITHOUT_IMATRIX: frozenset[str] = frozenset({"iq4_nl", "iq4_xs", "q2_K", "q4_K", "q5_K", "q6_K"})
"""Those of them that are quantized here without an imatrix too; for the others ggml does that."""

_SWITCH = "PLANNER_KERNELS"  # `ggml`: ggml's alone; `compiled`: ours from the first row on
_PAYS = 1 << 22  # weights of a format, from which on loading a compiler has paid: about a second of ggml's
_NONE = np.empty(0, np.float32)

_asked: dict[str, int] = {}
_found: dict[str, Quantizer | None] = {}
_looking = threading.Lock()


def quantize(fmt: Format, rows: Floats, weights: Floats | None) -> Bytes | None:
    """Return rows f32[r, n], C-contiguous, in a format, u8[r, bytes], with imatrix values f32[n] or None; or None: it
    is left to ggml. Other threads do not wait while one compiles: ggml works for them. Releases the GIL."""
    if fmt.name not in MODULES or (weights is None and fmt.name not in WITHOUT_IMATRIX):
        return None
    if fmt.name not in _found:
        _asked[fmt.name] = _asked.get(fmt.name, 0) + rows.size
        wish = os.environ.get(_SWITCH)
        if wish == "ggml" or (wish != "compiled" and _asked[fmt.name] < _PAYS):
            return None
        if not _looking.acquire(blocking=wish == "compiled"):
            return None
        try:
            if fmt.name not in _found:
                _found[fmt.name] = quantizer(fmt)
        finally:
            _looking.release()
    function = _found[fmt.name]
    if function is None:
        return None
    out = np.zeros((rows.shape[0], fmt.row_bytes(rows.shape[1])), dtype=np.uint8)
    if out.size:
        function(rows, _NONE if weights is None else weights, out)
    return out


def quantizer(fmt: Format) -> Quantizer | None:
    """Return what quantizes to one of `MODULES`, compiled; None where numba is missing or fails, or bytes differ."""
    try:
        module = importlib.import_module(f"{__name__}.{MODULES[fmt.name]}")
        function: Quantizer = getattr(module, fmt.name.lower())
        agreed = agrees(fmt, function, fmt.name in WITHOUT_IMATRIX)
    except KernelError:
        raise
    except Exception:  # numba is an extra; whatever one of another version stumbles over, ggml can do it
        return None
    return function if agreed else None
