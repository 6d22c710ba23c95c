"""Formats of all families under one roof, and the families by name. A recipe is of one family."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from planner.formats.families import GGUF, IK_LLAMA, MLX
from planner.formats.family import Family
from planner.formats.ggml import Format
from planner.terms import FamilyName

__all__ = [
    "FAMILIES",
    "Family",
    "activation_blocks",
    "all_formats",
    "family_named",
    "family_of",
    "kernel_of",
    "round_trip",
]

FAMILIES: Mapping[FamilyName, Family] = MappingProxyType({family.name: family for family in (GGUF, IK_LLAMA, MLX)})
"""By name. Where several would do, the first is taken."""


def family_named(name: FamilyName) -> Family:
    """Return the family that a recipe or a command names."""
    return FAMILIES[name]


def family_of(names: Iterable[str]) -> FamilyName:
    """Return the family that has formats of these names, in upper or lower case: the first that claims one of them, or
    else the first."""
    wanted = {name.lower() for name in names}
    claiming = (name for name, family in FAMILIES.items() if any(map(family.claims, wanted)))
    return next(claiming, next(iter(FAMILIES)))


@functools.cache
def all_formats() -> Mapping[str, Format]:
    """Return every format of every family by its name, ggml's first, as far as kernels are there."""
    return MappingProxyType({name: fmt for family in FAMILIES.values() for name, fmt in family.own.items()})


def kernel_of(fmt: Format) -> tuple[str, ...]:
    """Return what the format's results depend on besides their inputs (`Family.kernel`)."""
    return FAMILIES[fmt.family].kernel


@functools.cache
def activation_blocks() -> Mapping[str, int]:
    """Return how many activations share a scale in products with each format, by name (`Family.activation_block`)."""
    return {name: FAMILIES[fmt.family].activation_block(fmt) for name, fmt in all_formats().items()}


def round_trip(fmt: Format, rows: NDArray[np.float32], weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return what is left of rows after quantizing and dequantizing (`Family.round_trip`). Raises KernelError."""
    return FAMILIES[fmt.family].round_trip(fmt, rows, weights)
