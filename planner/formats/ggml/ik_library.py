"""Load and declare ik_llama.cpp's ggml library, where the user points at one. Like `library`, it knows C types.

The library has all of llama.cpp's types and some of its own, whose rows may begin with a scale of the whole row. Names,
blocks and bytes are asked of functions; of its table of traits, whose columns have changed from year to year, only
those at the beginning are read.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from planner.errors import KernelError
from planner.formats.ggml.library import LibraryFile, let_llama_have_its_own

__all__ = ["VARIABLE", "IkLibrary", "IkType", "load_ik"]

VARIABLE = "PLANNER_GGML_IK"
"""The environment variable that names the library."""

# `enum ggml_type` of its ggml.h: smaller numbers are llama.cpp's, and the last has been q8_k_r8 since December 2024
_FIRST, _LAST, _LAST_NAME = 97, 399, "q8_k_r8"
_LONGEST_NAME = 16
_REMEDY = (
    "Build ik_llama.cpp as docs/formats.md says, and set PLANNER_GGML_IK to its build/ggml/src/libggml.so; or unset it."
)


class _TypeTraits(ctypes.Structure):
    # The beginning of ggml_type_traits_t in ggml.h, and room for what comes after it
    _fields_ = (
        ("type_name", ctypes.c_void_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        # void (*)(const void * x, float * y, int64_t k)
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("others", ctypes.c_void_p * 32),
    )


class _InitParams(ctypes.Structure):
    # struct ggml_init_params
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class IkType(NamedTuple):
    """A type as the library describes it: `block` weights take `block_bytes`, and each row begins with `row_header`
    bytes of its own."""

    number: int
    name: str
    block: int
    block_bytes: int
    row_header: int
    quantized: bool
    needs_imatrix: bool


class IkLibrary(LibraryFile):
    """The C functions that we call, each declared as in its `ggml.h`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        number, count, at, size = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t
        try:
            dll = ctypes.CDLL(str(path))  # RTLD_LOCAL: its functions have the names of ours
            # size_t ggml_quantize_chunk(enum ggml_type type, const float * src, void * dst,
            #                            int64_t start, int64_t nrows, int64_t n_per_row, const float * imatrix,
            #                            const struct quantize_user_data * user_data)
            self._quantize_chunk = _declared(
                dll.ggml_quantize_chunk, size, number, at, at, count, count, count, at, at
            )  # fmt: skip
            # bool ggml_validate_row_data(enum ggml_type type, const void * data, size_t nbytes)
            self.validate_row_data = _declared(dll.ggml_validate_row_data, ctypes.c_bool, number, at, size)
            # ggml_type_traits_t ggml_internal_get_type_traits(enum ggml_type type)
            self._traits = _declared(dll.ggml_internal_get_type_traits, _TypeTraits, number)
            self._name = _declared(dll.ggml_type_name, ctypes.c_void_p, number)
            self._block = _declared(dll.ggml_blck_size, count, number)
            self._block_bytes = _declared(dll.ggml_type_size, size, number)
            self._row_bytes = _declared(dll.ggml_row_size, size, number, count)
            self._is_quantized = _declared(dll.ggml_is_quantized, ctypes.c_bool, number)
            self._needs_imatrix = _declared(dll.ggml_quantize_requires_imatrix, ctypes.c_bool, number)
            start = _declared(dll.ggml_init, ctypes.c_void_p, _InitParams)
            stop = _declared(dll.ggml_free, None, ctypes.c_void_p)
        except (OSError, AttributeError) as error:
            raise KernelError(f"{path} is not a ggml library of ik_llama.cpp: {error}", _REMEDY) from error
        self._reach = path.stat().st_size * 2
        if self._named(_LAST) != _LAST_NAME:
            raise KernelError(f"{path} is not a ggml library of ik_llama.cpp, or older than 2025.", _REMEDY)
        stop(start(_InitParams(0, None, False)))  # the first context makes tables of half floats, as llama.cpp does

    def quantize_chunk(
        self, number: int, rows: int, out: int, start: int, count: int, length: int, weights: int | None
    ) -> int:
        """Quantize as `Library.quantize_chunk`: there is one argument more, llama-quantize's options, and none is
        set."""
        return int(self._quantize_chunk(number, rows, out, start, count, length, weights, None))

    def to_float(self, number: int) -> Callable[..., None] | None:
        """Return the kernel that converts a row of a type to floats; None where there is none."""
        return self._traits(number).to_float or None

    def own_types(self) -> Iterator[IkType]:
        """Yield the types that llama.cpp does not have and whose rows can be converted to floats."""
        for number in range(_FIRST, _LAST + 1):
            name = self._named(number)
            if name is None or self.to_float(number) is None:
                continue
            block, nbytes = int(self._block(number)), int(self._block_bytes(number))
            header = int(self._row_bytes(number, block)) - nbytes
            quantized, needs = bool(self._is_quantized(number)), bool(self._needs_imatrix(number))
            yield IkType(number, name, block, nbytes, header, quantized, needs)

    def _named(self, number: int) -> str | None:
        """Return the name of a type; None for a number of none. What is no name lies far from that of f32."""
        at, origin = self._name(number), self._name(0)
        if at is None or abs(at - origin) > self._reach:
            return None
        return ctypes.string_at(at, _LONGEST_NAME).split(b"\0", 1)[0].decode("ascii", "replace")


def _declared(function: Any, returns: Any, *takes: Any) -> Any:
    function.restype, function.argtypes = returns, takes
    return function


@functools.cache
def load_ik() -> IkLibrary | None:
    """Load the library that `PLANNER_GGML_IK` names; None where it names none. Raises KernelError."""
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return None
    path = Path(chosen).expanduser()
    if not path.is_file():
        raise KernelError(f"{VARIABLE} names {chosen}, which is not a file.", _REMEDY)
    let_llama_have_its_own("**/libggml.so", "**/libggml.dylib")
    return IkLibrary(path.resolve())
