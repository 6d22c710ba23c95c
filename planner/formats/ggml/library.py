"""Find, load and declare the ggml base library. The only module that knows C types."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from planner.errors import KernelError

__all__ = ["Library", "LibraryFile", "let_llama_have_its_own", "load", "type_names"]

_PACKAGE = "libggml"
_PATTERNS = ("**/libggml-base.so", "**/libggml-base.dylib", "**/ggml-base.dll", "**/libggml-base.dll")
# Bounds on the search for the last type: ggml 0.21 has 43, blocks to 256 weights, names to 7 characters
_MOST_TYPES = 64
_LARGEST_BLOCK = 1024
_LONGEST_NAME = 16


class _TypeTraits(ctypes.Structure):
    # struct ggml_type_traits in ggml.h
    _fields_ = (
        ("type_name_pointer", ctypes.c_void_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        # void (*)(const void * x, float * y, int64_t k)
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


class LibraryFile:
    """A library that is loaded from `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the library file: other kernels may give other bytes."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Library(LibraryFile):
    """The C functions that we call, each declared as in `ggml.h`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            dll = ctypes.CDLL(str(path))
            # const struct ggml_type_traits * ggml_get_type_traits(enum ggml_type type)
            self.type_traits = dll.ggml_get_type_traits
            self.type_traits.restype = ctypes.POINTER(_TypeTraits)
            self.type_traits.argtypes = (ctypes.c_int,)
            # bool ggml_quantize_requires_imatrix(enum ggml_type type)
            self.requires_imatrix = dll.ggml_quantize_requires_imatrix
            self.requires_imatrix.restype = ctypes.c_bool
            self.requires_imatrix.argtypes = (ctypes.c_int,)
            # void iq2xs_init_impl(enum ggml_type type); void iq3xs_init_impl(int grid_size): what ggml_quantize_init
            # calls, without the lock that would keep every other kernel waiting (ggml-quants.h)
            self.iq2_tables = dll.iq2xs_init_impl
            self.iq3_tables = dll.iq3xs_init_impl
            for build in (self.iq2_tables, self.iq3_tables):
                build.restype = None
                build.argtypes = (ctypes.c_int,)
            # size_t ggml_quantize_chunk(enum ggml_type type, const float * src, void * dst,
            #                            int64_t start, int64_t nrows, int64_t n_per_row, const float * imatrix)
            self.quantize_chunk = dll.ggml_quantize_chunk
            self.quantize_chunk.restype = ctypes.c_size_t
            self.quantize_chunk.argtypes = (
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_int64,
                ctypes.c_int64,
                ctypes.c_void_p,
            )
            # bool ggml_validate_row_data(enum ggml_type type, const void * data, size_t nbytes)
            self.validate_row_data = dll.ggml_validate_row_data
            self.validate_row_data.restype = ctypes.c_bool
            self.validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
            # const char * ggml_version(void)
            dll.ggml_version.restype = ctypes.c_char_p
            dll.ggml_version.argtypes = ()
            self.version: str = dll.ggml_version().decode("ascii", "replace")
        except (OSError, AttributeError) as error:
            raise KernelError(
                f"{path} is not a ggml base library that we can use: {error}",
                "Point PLANNER_GGML at a libggml-base of 2025 or later, or unset it to use libggml-python's.",
            ) from error

    def to_float(self, number: int) -> Callable[..., None] | None:
        """Return the kernel that converts a row of a type to floats; None where there is none."""
        return self.type_traits(number).contents.to_float or None


@functools.cache
def load() -> Library:
    """Load the library named by `PLANNER_GGML`, else the one of the package libggml-python. Raises KernelError."""
    let_llama_have_its_own(*_PATTERNS)
    chosen = os.environ.get("PLANNER_GGML")
    if chosen:
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise KernelError(
                f"PLANNER_GGML names {chosen}, which is not a file.",
                "Set it to the path of a libggml-base (.so, .dylib or .dll), or unset it.",
            )
        return Library(path.resolve())
    if found := _find(_PACKAGE, _PATTERNS):
        return Library(found)
    raise KernelError(
        "The ggml library was not found: the package libggml-python is missing or has no libggml-base.",
        "Run `pip install libggml-python`, or set PLANNER_GGML to the path of a libggml-base.",
    )


def _find(package: str, patterns: Sequence[str]) -> Path | None:
    """Return the path of the library that a package brings along under one of the names."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for pattern in patterns:
            if found := sorted(Path(folder).glob(pattern)):
                return found[0].resolve()
    return None


def let_llama_have_its_own(*patterns: str) -> None:
    """Load llama-cpp-python's library of one of these names before another of its name, where there is one.

    Linkers know libraries by name, and both base libraries are libggml-base.so.0: libllama would otherwise be given
    ours, which is of another version. Ours is loaded by its path, which no other library can stand in for.
    """
    if path := _find("llama_cpp", patterns):
        with contextlib.suppress(OSError):  # broken: who needs it will hear of it
            ctypes.CDLL(str(path))


def type_names() -> dict[int, str]:
    """Return numbers and names of every type of the library; retired numbers are absent.

    The library does not export GGML_TYPE_COUNT, the length of its array of traits, and it has grown. What follows
    the array is recognized by not being an entry: its first word is no pointer near the names of the known types.
    """
    library = load()
    first = library.type_traits(0)  # F32
    reach = library.path.stat().st_size * 2
    origin = ctypes.cast(first.contents.type_name_pointer, ctypes.c_void_p).value or 0
    names: dict[int, str] = {}
    for number in range(_MOST_TYPES):
        traits = first[number]
        pointer = traits.type_name_pointer
        if pointer is None and not traits.type_size:
            continue  # a number that was retired
        if pointer is None or abs(pointer - origin) > reach or not 0 <= traits.blck_size <= _LARGEST_BLOCK:
            break
        name = ctypes.string_at(pointer, _LONGEST_NAME).split(b"\0", 1)[0]
        if traits.type_size and traits.blck_size:
            names[number] = name.decode("ascii", "replace")
    return names
