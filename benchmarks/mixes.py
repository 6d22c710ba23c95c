"""The types that llama.cpp's own mixes give a model's tensors, as llama.cpp itself says without quantizing anything."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from planner.gguf import read_imatrix
from planner.llama.library import llama

MIXES = {
    "IQ2_XXS": 19, "IQ2_M": 29, "Q2_K": 10, "IQ3_XXS": 23, "Q3_K_M": 12, "IQ4_XS": 30, "Q4_K_M": 15, "Q5_K_M": 17,
    "Q6_K": 18,
}  # fmt: skip
"""Names of llama.cpp's usual mixes, and their llama_ftype (llama.h)."""

# "[   1/ 339]  output.weight - [ 1536, 151936, 1, 1], type = f16, size = 445.1 MiB -> 182.6 MiB (q6_K)"
_LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*-> .*\((\S+)\)")


def mix_parameters(imatrix: Path, mix: str, threads: int) -> tuple[Any, list[Any]]:
    """Parameters of `llama_model_quantize` for a mix, and what has to live as long as they are used."""
    api: Any = llama()
    entries = read_imatrix(imatrix).entries
    data = (api.llama_model_imatrix_data * (len(entries) + 1))()
    alive: list[Any] = [data]
    for slot, (name, entry) in zip(data, entries.items(), strict=False):
        values = np.ascontiguousarray(entry.values, np.float32).reshape(-1)
        alive.append(values)
        slot.name = name.encode()
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        slot.size = values.size
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.imatrix = MIXES[mix], threads, data
    return parameters, alive


def mix_formats(model: Path, imatrix: Path, mix: str) -> dict[str, str]:
    """The type of every tensor that `llama-quantize --dry-run --imatrix F MODEL MIX` would convert."""
    api: Any = llama()
    parameters, alive = mix_parameters(imatrix, mix, 1)
    parameters.dry_run = True
    log: list[str] = []

    @api.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(_level: int, text: bytes, _user_data: object) -> None:
        log.append(text.decode("utf-8", "replace"))

    before, user_data = api.llama_log_callback(), ctypes.c_void_p()
    api.llama_log_get(ctypes.byref(before), ctypes.byref(user_data))
    api.llama_log_set(listen, None)
    try:
        status = api.llama_model_quantize(os.fsencode(model), os.fsencode(os.devnull), ctypes.byref(parameters))
    finally:
        api.llama_log_set(before, user_data)
    del alive
    found = dict(match.groups() for match in map(_LINE.match, "".join(log).splitlines()) if match)
    if status or not found:
        raise SystemExit(f"llama.cpp does not say how it would make {mix} of {model}")
    return found


def write_mix(model: Path, imatrix: Path, mix: str, out: Path, threads: int) -> None:
    """What `llama-quantize --imatrix F MODEL OUT MIX` writes."""
    parameters, alive = mix_parameters(imatrix, mix, threads)
    if llama().llama_model_quantize(os.fsencode(model), os.fsencode(out), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp could not quantize {model} as {mix}")
    del alive
