"""The state file of llama-quantize's --target-bpw (a fork: github.com/EAddario/llama.cpp): what it measured.

    magic u64 "BPW-V2" | model u64 | tensors u64
    tensor: name length u32, name | candidates u64 | choice i32 | least, most bpw f32 | elements u64 | candidates …
    candidate: type i32 | bpw f32 | bytes u64 | error f64

A candidate's error is a sum over all rows of the tensor: of each row's squared error relative to its own energy, or for
queries and keys, where the imatrix has sums of activations, of one minus the cosine between the row and its copy.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from planner.errors import RecipeError
from planner.formats.ggml import format_by_id
from planner.inputs.kinds import BPW_STATE_MAGIC

__all__ = ["Tried", "read_bpw_state"]

_HEAD = struct.Struct("<8sQQ")
_TENSOR = struct.Struct("<QiffQ")
_CANDIDATE = struct.Struct("<ifQd")
_LONGEST = 1024
_MOST = 64  # candidates of one tensor


@dataclass(frozen=True, slots=True)
class Tried:
    """Errors of one tensor, summed over rows, in the formats that were tried. `elements` is the tensor's size."""

    elements: int
    errors: Mapping[str, float]


def read_bpw_state(data: bytes, where: str) -> dict[str, Tried]:
    """Return the formats that each tensor was tried in. Raises RecipeError for any other file, and for a truncated
    one."""
    if len(data) < _HEAD.size or not data.startswith(BPW_STATE_MAGIC):
        raise RecipeError(
            f"{where} is no state of --target-bpw that planner knows.", "Give a file that begins with BPW-V2."
        )
    count, at = _HEAD.unpack_from(data)[2], _HEAD.size
    tried: dict[str, Tried] = {}
    try:
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, at)
            if length > _LONGEST:
                raise ValueError("a name is too long")
            name = struct.unpack_from(f"{length}s", data, at + 4)[0].decode("utf-8", "surrogateescape")
            candidates, _, _, _, elements = _TENSOR.unpack_from(data, at + 4 + length)
            if candidates > _MOST:
                raise ValueError("a tensor has too many candidates")
            at += 4 + length + _TENSOR.size
            errors = {}
            for _ in range(candidates):
                kind, _, _, error = _CANDIDATE.unpack_from(data, at)
                at += _CANDIDATE.size
                fmt = format_by_id(kind)
                if fmt is not None and math.isfinite(error) and error >= 0:
                    errors[fmt.name] = error
            tried[name] = Tried(elements, errors)
    except (struct.error, ValueError) as error:
        raise RecipeError(f"{where} is damaged: {error}.", "Let --target-bpw write it again.") from error
    return tried
