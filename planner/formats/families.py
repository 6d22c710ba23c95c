"""The families: `GGUF`, which has ggml's types and llama.cpp; `IK_LLAMA`, which has more types and ik_llama.cpp; and
`MLX`, which has affine formats and mlx-lm."""

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
    IK_SETS,
    IK_TYPES,
    IK_VARIABLE,
    Format,
    dequantize_rows,
    format_named,
    formats,
    ik_formats,
    library_digest,
    library_version,
    load_ik,
    native_formats,
    quantize_rows,
    select_formats,
    types_of_dialect,
)
from planner.formats.mlx import AFFINE, AFFINE_SETS, KERNEL, Affine, affine_named, round_trip_affine
from planner.names.gguf import role_of
from planner.terms import FamilyName

if TYPE_CHECKING:
    from state import Inventory, TensorRecord

__all__ = ["GGUF", "IK_LLAMA", "MLX"]

_SUPERBLOCK = 256  # QK_K of ggml-common.h
_HALVES = ("f16", "bf16")  # what MLX has besides its affine formats
_HALF = 2  # bytes
_FLOATS = ("f32", *_HALVES)
_GGUF_ONLY = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")  # MLX works them out from config.json


class _Gguf(Family):
    """Models are as the state describes them."""

    name: FamilyName = "gguf"
    title = "llama.cpp"
    engine = "llama.cpp"
    option: tuple[str, ...] = ()
    alignment = 32
    whole_file = True
    dialect = "llama-quantize"
    exported_to = None
    in_llama_cpp = True
    substitutes = True
    keeps_quantized = True
    calibrated = True
    halves = ("f16",)

    @property
    def own(self) -> Mapping[str, Format]:
        return native_formats()

    def claims(self, name: str) -> bool:
        return False

    @property
    def kernel(self) -> tuple[str, ...]:
        return f"ggml {library_version()}", library_digest()

    def named(self, name: str) -> Format:
        plain = name.strip().lower()
        for other in (IK_LLAMA, MLX):
            if other.claims(plain):
                raise UsageError(
                    f"{plain} is a format of {other.title}, which llama.cpp does not have.",
                    f"Plan for {other.title} with {option('family', other.name)}.",
                )
        return format_named(name, self.formats)

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


class _IkLlama(_Gguf):
    """ik_llama.cpp: what it has in common with llama.cpp is quantized by ggml, so that one measurement is for both."""

    name = "ik_llama"
    title = "ik_llama.cpp"
    engine = "ik_llama.cpp"
    option = ("--family", "ik_llama")
    dialect = "ik_llama"
    in_llama_cpp = False

    @property
    def own(self) -> Mapping[str, Format]:
        return ik_formats()

    def claims(self, name: str) -> bool:
        return name in IK_TYPES

    @property
    def formats(self) -> Mapping[str, Format]:
        if load_ik() is None:
            raise UsageError(
                f"The types of ik_llama.cpp need its library, and {IK_VARIABLE} names none.",
                f"Build it as docs/formats.md says, and set {IK_VARIABLE} to its build/ggml/src/libggml.so.",
            )
        known = types_of_dialect(self.dialect)
        return {**{name: fmt for name, fmt in native_formats().items() if name in known}, **self.own}

    @property
    def kernel(self) -> tuple[str, ...]:
        library = load_ik()
        assert library is not None, "there are formats of it"
        return "ik_llama.cpp", library.digest

    def named(self, name: str) -> Format:
        if MLX.claims(plain := name.strip().lower()):
            raise UsageError(
                f"{plain} is a format of MLX, which no GGUF can have.",
                f"Plan for MLX with {option('family', MLX.name)}.",
            )
        return format_named(name, self.formats)

    def choose(self, choice: str | Sequence[str]) -> tuple[Format, ...]:
        return select_formats(choice, sets=IK_SETS, named=self.named)


class _Mlx(Family):
    """Models have 16 bits a weight for what is not quantized (the type that most of the model has; F32 becomes bf16),
    no alignment, and no header: a safetensors file's is not ours to promise. mlx-lm leaves out layers that predict
    several tokens ahead. Where mlx-lm has tensors is loaded when it is asked for: plans for GGUF need not wait."""

    name = "mlx"
    title = "MLX"
    engine = "mlx-lm"
    option = ("--family", "mlx")
    alignment = 1
    whole_file = False
    dialect = exported_to = "mlx-lm"
    in_llama_cpp = False
    substitutes = False
    keeps_quantized = False
    calibrated = False
    halves = ()

    @property
    def own(self) -> Mapping[str, Format]:
        return AFFINE

    def claims(self, name: str) -> bool:
        return name in AFFINE

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
IK_LLAMA: Family = _IkLlama()
MLX: Family = _Mlx()
