"""Formats of all families under one roof: what they are called, which kernels they have, and what those depend on.

A family is what one engine can run: `gguf` has ggml's types, `mlx` MLX's affine formats. A recipe is of one family.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError, option
from planner.formats.ggml import (
    Format,
    dequantize_rows,
    format_named,
    formats,
    library_digest,
    library_version,
    quantize_rows,
    select_formats,
)
from planner.formats.mlx import AFFINE, AFFINE_SETS, KERNEL, Affine, affine_named, round_trip_affine

__all__ = [
    "Family",
    "all_formats",
    "belongs",
    "block_of_activations",
    "choose_formats",
    "family_of",
    "kernel_of",
    "named_in",
    "round_trip",
]

Family = Literal["gguf", "mlx"]
_UNQUANTIZED = ("f16", "bf16")  # what MLX has besides
_SUPERBLOCK = 256  # QK_K of ggml-common.h


@functools.cache
def all_formats() -> Mapping[str, Format]:
    """Every format of every family by its name, ggml's first. No name is in two families."""
    return MappingProxyType({**formats(), **AFFINE})


def belongs(name: str, family: Family) -> bool:
    """Whether a tensor can be quantized to the format of this name within the family."""
    return name in AFFINE if family == "mlx" else name in formats()


def family_of(names: Iterable[str]) -> Family:
    """The family that formats of these names, in any case, are of: `gguf` unless MLX's own are among them."""
    return "mlx" if any(name.lower() in AFFINE for name in names) else "gguf"


def named_in(family: Family, name: str) -> Format:
    """The format that a user names, in any case. Raises UsageError for one that the family does not have."""
    plain = name.strip().lower()
    if family == "mlx":
        return formats()[plain] if plain in _UNQUANTIZED else affine_named(name)
    if plain in AFFINE:
        raise UsageError(
            f"{plain} is a format of MLX, which no GGUF can have.", f"Plan for MLX with {option('family', 'mlx')}."
        )
    return format_named(name)


def choose_formats(family: Family, choice: str | Sequence[str]) -> tuple[Format, ...]:
    """Formats of a family from names and named sets, as `select_formats` reads them. Raises UsageError."""
    if family == "mlx":
        return select_formats(choice, sets=AFFINE_SETS, named=affine_named)
    return select_formats(choice, named=functools.partial(named_in, family))


def kernel_of(fmt: Format) -> tuple[str, ...]:
    """What the format's results depend on besides their inputs: a title, and where it does not say all, a digest."""
    return (KERNEL,) if isinstance(fmt, Affine) else (f"ggml {library_version()}", library_digest())


def block_of_activations(fmt: Format) -> int:
    """How many activations share a scale where llama.cpp's CPU kernels round them to 8 bits for products with this
    format (`vec_dot_type` of ggml-cpu.c): 256 or 32; 0 where they are not rounded, as MLX never does."""
    if isinstance(fmt, Affine) or not fmt.quantized:
        return 0
    return _SUPERBLOCK if fmt.block == _SUPERBLOCK else 32


def round_trip(fmt: Format, rows: NDArray[np.float32], weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """What is left of rows, float32 [r, n], after quantizing and dequantizing; `weights` are the imatrix values of the
    channels, float32 [n], which MLX has no use for. Raises KernelError for values that a kernel cannot take."""
    if isinstance(fmt, Affine):
        return round_trip_affine(fmt, rows)
    return dequantize_rows(fmt, quantize_rows(fmt, rows, weights), rows.shape[1])
