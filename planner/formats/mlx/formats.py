"""The table of MLX's affine formats: 2, 3, 4, 5, 6 or 8 bits a weight, a scale and a bias for 32, 64 or 128 weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from planner.errors import UsageError
from planner.formats.ggml import Format
from planner.terms import FamilyName

__all__ = ["AFFINE", "AFFINE_SETS", "Affine", "affine_named"]

# What affine_quantize in mlx/ops.cpp accepts
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_HALVES = 4  # bytes of a scale and a bias, 16 bits each
_NOT_GGML = -1


@dataclass(frozen=True, slots=True)
class Affine(Format):
    """MLX's affine quantization: `bits` a weight, a scale and a bias (16 bits each) for every `group` weights of a row.

    As a `Format`, a block is a group. MLX keeps packed weights, scales and biases in arrays of their own; `row_bytes`
    is their sum.
    """

    bits: int
    group: int
    family: ClassVar[FamilyName] = "mlx"
    piece: ClassVar[str] = "group"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as a name."""
        return affine_named, (self.name,)

    @property
    def parameters(self) -> dict[str, int]:
        """The format's parameters as config.json has them."""
        return {"group_size": self.group, "bits": self.bits}


def _affine(bits: int, group: int) -> Affine:
    return Affine(
        name=f"mlx_q{bits}_g{group}", id=_NOT_GGML, block=group, block_bytes=group * bits // 8 + _HALVES,
        quantized=True, needs_imatrix=False, bits=bits, group=group,
    )  # fmt: skip


_ALL = sorted((_affine(bits, group) for bits in _BITS for group in _GROUPS), key=lambda entry: entry.bpw)
AFFINE: Mapping[str, Affine] = MappingProxyType({entry.name: entry for entry in _ALL})
"""All of them by name, smallest first; no two have the same bits per weight."""

AFFINE_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"all": tuple(AFFINE)}
    | {f"g{group}": tuple(name for name, entry in AFFINE.items() if entry.group == group) for group in _GROUPS}
)


def affine_named(name: str) -> Affine:
    """Return the format that a user names, in any case (`mlx_q4_g64`). Raises UsageError with near names."""
    plain = name.strip().lower()
    if plain in AFFINE:
        return AFFINE[plain]
    near = difflib.get_close_matches(plain, AFFINE, n=4, cutoff=0.5)
    meant = f" Near names: {', '.join(near)}." if near else ""
    raise UsageError(
        f"{name!r} is none of MLX's affine formats.{meant}",
        "They are called after bits (2, 3, 4, 5, 6, 8) and group size (32, 64, 128), such as mlx_q4_g64.",
    )
