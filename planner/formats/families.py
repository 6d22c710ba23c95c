"""The families: `GGUF`, which has ggml's types and llama.cpp, and `MLX`, which has affine formats and mlx-lm."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError, option
from planner.formats.family import Family
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
from planner.names.gguf import role_of

if TYPE_CHECKING:
    from state import Inventory, TensorRecord

__all__ = ["GGUF", "MLX"]

_SUPERBLOCK = 256  # QK_K of ggml-common.h
_HALVES = ("f16", "bf16")  # what MLX has besides its affine formats
_HALF = 2  # bytes
_FLOATS = ("f32", *_HALVES)
_GGUF_ONLY = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")  # MLX works them out from config.json


class _Gguf(Family):
    """Models are as the state describes them."""

    name = "gguf"
    engine = "llama.cpp"
    option = ()
    alignment = 32
    whole_file = True
    exported_to = None
    substitutes = True
    keeps_quantized = True
    calibrated = True
    halves = ("f16",)

    @property
    def formats(self) -> Mapping[str, Format]:
        return formats()

    @property
    def kernel(self) -> tuple[str, ...]:
        return f"ggml {library_version()}", library_digest()

    def named(self, name: str) -> Format:
        plain = name.strip().lower()
        if plain in AFFINE:
            raise UsageError(
                f"{plain} is a format of MLX, which no GGUF can have.", f"Plan for MLX with {option('family', 'mlx')}."
            )
        return format_named(name)

    def choose(self, choice: str | Sequence[str]) -> tuple[Format, ...]:
        return select_formats(choice, named=self.named)

    def activation_block(self, fmt: Format) -> int:
        # `vec_dot_type` of ggml-cpu.c
        if not fmt.quantized:
            return 0
        return _SUPERBLOCK if fmt.block == _SUPERBLOCK else 32

    def round_trip(
        self, fmt: Format, rows: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        return dequantize_rows(fmt, quantize_rows(fmt, rows, weights), rows.shape[1])

    def check_architecture(self, architecture: str) -> None:
        pass

    def can_quantize(self, name: str, architecture: str) -> bool:
        return True

    def left_out(self, names: Iterable[str]) -> set[str]:
        return set()

    def inventory(self, inventory: Inventory) -> Inventory:
        return inventory

    def fused(self, inventory: Inventory) -> list[tuple[str, ...]]:
        return []


class _Mlx(Family):
    """Models have 16 bits a weight for what is not quantized (the type that most of the model has; F32 becomes bf16),
    no alignment, and no header: a safetensors file's is not ours to promise. mlx-lm leaves out layers that predict
    several tokens ahead. Where mlx-lm has tensors is loaded when it is asked for: plans for GGUF need not wait."""

    name = "mlx"
    engine = "mlx-lm"
    option = ("--family", "mlx")
    alignment = 1
    whole_file = False
    exported_to = "mlx-lm"
    substitutes = False
    keeps_quantized = False
    calibrated = False
    halves = ()

    @property
    def formats(self) -> Mapping[str, Format]:
        return AFFINE

    @property
    def kernel(self) -> tuple[str, ...]:
        return (KERNEL,)

    def named(self, name: str) -> Format:
        plain = name.strip().lower()
        return formats()[plain] if plain in _HALVES else affine_named(name)

    def choose(self, choice: str | Sequence[str]) -> tuple[Format, ...]:
        return select_formats(choice, sets=AFFINE_SETS, named=affine_named)

    def activation_block(self, fmt: Format) -> int:
        return 0

    def round_trip(
        self, fmt: Format, rows: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        return round_trip_affine(cast("Affine", fmt), rows)

    def check_architecture(self, architecture: str) -> None:
        from planner.names.mlx import check_architecture

        check_architecture(architecture)

    def can_quantize(self, name: str, architecture: str) -> bool:
        from planner.names.mlx import can_quantize

        return can_quantize(name, architecture)

    def left_out(self, names: Iterable[str]) -> set[str]:
        from planner.names.gguf import ahead

        return ahead(names)

    def inventory(self, inventory: Inventory) -> Inventory:
        self.check_architecture(inventory.architecture)
        sizes: Counter[str] = Counter()
        for tensor in inventory.tensors:
            sizes[tensor.source_format] += tensor.elements
        half = "f16" if sizes["f16"] > sizes["bf16"] else "bf16"
        gone = self.left_out(tensor.name for tensor in inventory.tensors)
        tensors = tuple(
            self._stored(tensor, inventory.architecture, half)
            for tensor in inventory.tensors
            if not (_GGUF_ONLY.fullmatch(tensor.name) or tensor.name in gone)
        )
        return inventory.model_copy(update={"tensors": tensors, "header_bytes": 0, "alignment": self.alignment})

    def _stored(self, tensor: TensorRecord, architecture: str, half: str) -> TensorRecord:
        reason = tensor.left_alone
        if reason is not None and tensor.source_format not in _FLOATS:
            return tensor
        if reason is None and not self.can_quantize(tensor.name, architecture):
            reason = "no module of mlx-lm"
        kind = tensor.source_format if tensor.source_format in _HALVES else half
        size = _HALF * tensor.elements
        return tensor.model_copy(update={"source_format": kind, "nbytes": size, "left_alone": reason})

    def fused(self, inventory: Inventory) -> list[tuple[str, ...]]:
        from planner.names.mlx import module_paths

        together: dict[str, list[str]] = {}
        for tensor in inventory.tensors:
            if tensor.left_alone is None:
                for path in module_paths(tensor.name, inventory.architecture):
                    together.setdefault(path, []).append(tensor.name)
        several = (names for names in together.values() if len(names) > 1)
        return sorted({tuple(sorted({role_of(name)[1] for name in names})) for names in several})


GGUF: Family = _Gguf()
MLX: Family = _Mlx()
