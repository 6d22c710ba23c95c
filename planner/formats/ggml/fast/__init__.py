"""ggml's bytes in a fraction of the time: its quantizers, compiled for this processor, many blocks side by side.

A module here has a function for each of its formats, by the format's name in small letters, that takes `rows`,
f32[r, n], C-contiguous; `weights`, f32[n], imatrix values, or an empty array where there are none; and `out`,
u8[r, bytes], into which it puts what ggml's kernel would. Nothing is loaded before it pays, and nothing is used that
does not agree with the loaded ggml to the last byte (`agreement`).
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError
from planner.formats.ggml.fast.agreement import agrees, agrees_unasked, proven
from planner.formats.ggml.formats import Format
from planner.formats.ggml.reference import quantize_by_ggml

__all__ = ["MODULES", "WITHOUT_IMATRIX", "Quantizer", "quantize", "quantizer"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Quantizer = Callable[[Floats, Floats, Bytes], None]

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

_SWITCH = "PLANNER_KERNELS"  # `ggml`: ggml's alone; `compiled`: ours from the first row on
_PAYS = 1.0  # seconds of ggml's work on a format, from which on loading a compiler is soon paid for
_NONE = np.empty(0, np.float32)

_spent: dict[str, float] = {}
_found: dict[str, Quantizer | None] = {}
_looking = threading.Lock()


def quantize(fmt: Format, rows: Floats, weights: Floats | None) -> Bytes:
    """Return rows f32[r, n], C-contiguous, in a format, u8[r, bytes], with imatrix values f32[n] or None, by ours or by
    ggml's kernel. Releases the GIL. Raises KernelError if ggml fails and says so."""
    function = _chosen(fmt) if weights is not None or fmt.name in WITHOUT_IMATRIX else None
    if function is None:
        begun = time.thread_time()
        out = quantize_by_ggml(fmt, rows, weights)
        _spent[fmt.name] = _spent.get(fmt.name, 0) + time.thread_time() - begun
        return out
    out = np.zeros((rows.shape[0], fmt.row_bytes(rows.shape[1])), dtype=np.uint8)
    if out.size:
        function(rows, _NONE if weights is None else weights, out)
    return out


def at_once(fmt: Format) -> bool:
    """Return whether a lattice type is quantized here from the first row on, so that ggml need not build its tables."""
    return (
        fmt.name in MODULES
        and os.environ.get(_SWITCH) != "ggml"
        and _found.get(fmt.name, True) is not None
        and importlib.util.find_spec("numba") is not None
        and proven(fmt)
    )


def _chosen(fmt: Format) -> Quantizer | None:
    """Return our quantizer, or None for ggml's: where there is no other, or before it pays, or as another thread has
    just begun to compile it."""
    wish = os.environ.get(_SWITCH)
    if fmt.name not in MODULES or wish == "ggml":
        return None
    if fmt.name in _found:
        return _found[fmt.name]
    soon = wish == "compiled" or at_once(fmt)
    if not soon and _spent.get(fmt.name, 0) < _PAYS:
        return None
    if not _looking.acquire(blocking=soon):
        return None
    try:
        if fmt.name not in _found:
            _found[fmt.name] = quantizer(fmt)
        return _found[fmt.name]
    finally:
        _looking.release()


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
