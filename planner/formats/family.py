"""A family of formats: what one engine can run, and what it makes of a model.

State files describe models as GGUFs, and measurements of all families lie in them side by side. A family translates
that description when a recipe is made, so that plans and sums need not know families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format
from planner.terms import FamilyName

if TYPE_CHECKING:
    from state import Inventory

__all__ = ["Family"]


class Family(ABC):
    """A family of formats.

    - `name`: as commands and recipes have it; `title`: as messages have it; `engine`: what runs its models
    - `option`: the words that a command line needs to mean it
    - `alignment`: bytes to which each tensor is padded, where a model says nothing else
    - `whole_file`: whether sizes are of a whole file, not of tensor data alone
    - `dialect`: that of the tool of the engine that writes its models
    - `exported_to`: the same, where planner cannot write them; None where it does
    - `in_llama_cpp`: whether llama.cpp runs them
    - `substitutes`: whether the engine has formats for rows that blocks of the one asked for do not fill
    - `keeps_quantized`: whether tensors that ggml has quantized already can stay as they are
    - `calibrated`: whether kernels take an importance matrix's values, and codes can be refined against covariances
    - `halves`: what an F32 tensor may be stored in besides quantized formats
    """

    name: FamilyName
    title: str
    engine: str
    option: tuple[str, ...]
    alignment: int
    whole_file: bool
    dialect: str
    exported_to: str | None
    in_llama_cpp: bool
    substitutes: bool
    keeps_quantized: bool
    calibrated: bool
    halves: tuple[str, ...]

    @property
    @abstractmethod
    def own(self) -> Mapping[str, Format]:
        """Formats that no other family has, unless it has all of this one's, by name: as far as kernels are there."""

    @property
    def formats(self) -> Mapping[str, Format]:
        """Formats that a tensor can be quantized to, by name. Raises UsageError where the kernels are not there."""
        return self.own

    @abstractmethod
    def claims(self, name: str) -> bool:
        """Return whether a name, in lower case, tells this family from those before it, whether or not the kernels are
        there."""

    @property
    @abstractmethod
    def kernel(self) -> tuple[str, ...]:
        """Identity of the kernels, on which results depend besides their inputs: a title, and, if that is not enough, a
        digest."""

    @abstractmethod
    def named(self, name: str) -> Format:
        """Return the format that a user names, in any case. Raises UsageError for one that the family does not have."""

    @abstractmethod
    def choose(self, choice: str | Sequence[str]) -> tuple[Format, ...]:
        """Return formats from names and named sets, as `select_formats` reads them. Raises UsageError."""

    @abstractmethod
    def activation_block(self, fmt: Format) -> int:
        """Return how many activations share a scale where the engine rounds them to 8 bits for products with this
        format; 0 where it does not."""

    @abstractmethod
    def round_trip(
        self, fmt: Format, rows: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return what is left of rows, float32 [r, n], after quantizing and dequantizing; `weights` are the imatrix
        values of the channels, float32 [n]. Raises KernelError for values that a kernel cannot take."""

    @abstractmethod
    def check_architecture(self, architecture: str) -> None:
        """Raise UsageError for a model that the engine, as far as is known, cannot load."""

    @abstractmethod
    def can_quantize(self, name: str, architecture: str) -> bool:
        """Return whether the engine can have this tensor quantized, given that llama.cpp can."""

    @abstractmethod
    def left_out(self, names: Iterable[str]) -> set[str]:
        """Return those of a model's tensors that the engine does not load."""

    @abstractmethod
    def inventory(self, inventory: Inventory) -> Inventory:
        """Return the model as the engine stores it. Raises UsageError for one that it cannot load."""

    @abstractmethod
    def fused(self, inventory: Inventory) -> list[tuple[str, ...]]:
        """Return roles that are one module in the engine, which has one format, of the family's inventory."""
