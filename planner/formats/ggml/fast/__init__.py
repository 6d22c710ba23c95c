"""ggml's bytes in a fraction of the time: its quantizers, compiled for this processor, many blocks side by side.

A module here has a function for each of its formats, by the format's name in small letters, that takes `rows`,
f32[r, n], C-contiguous; `weights`, f32[n], imatrix values, or an empty array where there are none; and `out`,
u8[r, bytes], into which it puts what ggml's kernel would; `halves` makes floats of F16. Nothing is loaded before it
pays, and nothing is used that does not agree with the loaded ggml to the last byte (`agreement`).
"""

from __future__ import annotations

import functools
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

_SWITCH = "PLANNER_KERNELS"  # `ggml`: ggml's alone; `compiled`: ours from the first row on
# Seconds of ggml's work on a format, from which on loading ours is soon paid for: from the cache it takes 0.1 to 0.7 s,
# and 0.4 s more for the first
_PAYS = 0.5
_NONE = np.empty(0, np.float32)
_HALVES = "halves"  # what is kept of making floats of F16

_spent: dict[str, float] = {}
_found: dict[str, Callable[..., None] | None] = {}
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
        and _has_compiler()
        and proven(fmt)
    )


@functools.cache
def _has_compiler() -> bool:
    return importlib.util.find_spec("numba") is not None


def dequantize(fmt: Format, data: Bytes, row_length: int) -> Floats:
    """Return rows u8[r, bytes], C-contiguous, of a format as f32[r, row_length], by ours or by ggml's kernel. Releases
    the GIL."""
    if fmt.name != "f16":
        return dequantize_by_ggml(fmt, data, row_length)
    halves = data.reshape(-1).view(np.uint16)
    wish = os.environ.get(_SWITCH)
    usable = wish != "ggml" and halves.flags.aligned
    function = _loaded(_HALVES, soon=wish == "compiled", find=lambda: widener(fmt)) if usable else None
    if function is None:
        begun = time.thread_time()
        rows = dequantize_by_ggml(fmt, data, row_length)
        _spent[_HALVES] = _spent.get(_HALVES, 0) + time.thread_time() - begun
        return rows
    rows = np.empty((data.shape[0], row_length), np.float32)
    halves.flags.writeable = False  # as a mapped file is: compiled once, for both
    function(halves, rows.reshape(-1))
    return rows


def _chosen(fmt: Format) -> Quantizer | None:
    """Return our quantizer, or None for ggml's: where there is no other, or before it pays, or as another thread has
    just begun to compile it."""
    wish = os.environ.get(_SWITCH)
    if fmt.name not in MODULES or wish == "ggml":
        return None
    if fmt.name in _found:
        return _found[fmt.name]
    return _loaded(fmt.name, soon=wish == "compiled" or at_once(fmt), find=lambda: quantizer(fmt))


def _loaded(name: str, *, soon: bool, find: Callable[[], Callable[..., None] | None]) -> Callable[..., None] | None:
    """Return what there is of ours for a format, found now if it is wanted `soon` or pays by now."""
    if name in _found:
        return _found[name]
    if not soon and _spent.get(name, 0) < _PAYS:
        return None
    if not _looking.acquire(blocking=soon):
        return None
    try:
        if name not in _found:
            _found[name] = find()
        return _found[name]
    finally:
        _looking.release()


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
