"""The table of formats, read from the loaded library's own type traits, and the names that users give."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import ClassVar

from planner.errors import RecipeError, UsageError
from planner.formats.ggml import library
from planner.formats.ggml.ik_library import IkLibrary, load_ik
from planner.formats.ggml.types import IK_TYPES, TYPES, type_of
from planner.terms import FamilyName

__all__ = [
    "CANDIDATES",
    "FORMAT_SETS",
    "IK_SETS",
    "Format",
    "format_by_id",
    "format_named",
    "formats",
    "ik_formats",
    "native_formats",
    "select_formats",
]

_INTERLEAVED = re.compile(r"_r\d+$")
_SETS = ("all", "k", "iq", "legacy", "cpu-repack")
FORMAT_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: tuple(row.name for row in TYPES.values() if name in row.sets) for name in _SETS}
)
IK_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    name: (*FORMAT_SETS.get(name, ()), *(row.name for row in IK_TYPES.values() if name in row.sets))
    for name in (*_SETS, "ik", "kt")
})  # fmt: skip
"""The sets of ik_llama.cpp, which has all of these types and its own."""
CANDIDATES = FORMAT_SETS["all"]
"""Formats that are measured unless the user names others."""


@dataclass(frozen=True, slots=True)
class Format:
    """A type that a tensor can be stored in, by ggml's name and number.

    `block` weights take `block_bytes` bytes, and each row has `row_header` bytes before its blocks; `needs_imatrix`:
    the kernel cannot run without one.
    """

    name: str
    id: int
    block: int
    block_bytes: int
    quantized: bool
    needs_imatrix: bool
    row_header: int = field(default=0, kw_only=True)
    family: ClassVar[FamilyName] = "gguf"
    piece: ClassVar[str] = "block"
    validated: ClassVar[bool] = True  # by the library, which else takes any bytes for sound
    degree: ClassVar[int] = 2  # of what its kernel adds up: squares of weights, or squares that are weighed by squares

    @property
    def library(self) -> library.Library | IkLibrary:
        """The library that has the format's kernels. Raises KernelError if it cannot be loaded."""
        return library.load()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as a name: it is the loaded library's own, wherever that is."""
        return _of_library, (self.name,)

    @property
    def bpw(self) -> float:
        """Bits per weight, without what is at the beginning of rows."""
        return 8 * self.block_bytes / self.block

    @property
    def for_weights(self) -> bool:
        """True if weights can be converted to the format."""
        return type_of(self.name).weights

    def fits(self, row_length: int) -> bool:
        """Return whether whole blocks fill a row of `row_length` weights."""
        return row_length > 0 and row_length % self.block == 0

    def row_bytes(self, row_length: int) -> int:
        """Return the bytes of a row of `row_length` weights. Raises ValueError if blocks do not fill it."""
        if not self.fits(row_length):
            raise ValueError(f"rows of {row_length} weights are no whole number of {self.name}'s {self.block}")
        return self.row_header + row_length // self.block * self.block_bytes

    def tensor_bytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of a tensor of this shape (ggml order). Raises ValueError if blocks do not fill its rows."""
        return self.row_bytes(shape[0]) * prod(shape[1:])

    def check_rows(self, tensor: str, row_length: int) -> None:
        """Raise RecipeError for a tensor that cannot have the format, as blocks do not fill its rows."""
        if not self.fits(row_length):
            raise RecipeError(
                f"{tensor} cannot be {self.name}: its rows of {row_length:,} weights are no multiple of {self.block}.",
                f"Choose a format with smaller {self.piece}s.",
            )


@dataclass(frozen=True, slots=True)
class _IkFormat(Format):
    """A type of ik_llama.cpp's own, by the name and the number that it has there."""

    family: ClassVar[FamilyName] = "ik_llama"
    validated: ClassVar[bool] = False
    degree: ClassVar[int] = 4

    @property
    def library(self) -> IkLibrary:
        found = load_ik()
        assert found is not None, "there are formats of it"
        return found

    @property
    def for_weights(self) -> bool:
        """True for those of our table: the library ends the process for what it cannot convert to."""
        return self.name in IK_TYPES


@functools.cache
def formats() -> Mapping[str, Format]:
    """Return all types that tensors of a GGUF can have here, by name: those of the loaded ggml library in its order,
    then those that ik_llama.cpp's has besides, where it is loaded."""
    return MappingProxyType({**native_formats(), **ik_formats()})


@functools.cache
def ik_formats() -> Mapping[str, Format]:
    """Return the types that ik_llama.cpp's library has and ggml's does not, by its names, smallest number first; none
    where there is no such library. Not those whose rows are interleaved, which are no rows any more."""
    own, taken = load_ik(), native_formats()
    numbers = {entry.id for entry in taken.values()}
    return MappingProxyType({
        entry.name: _IkFormat(
            entry.name, entry.number, entry.block, entry.block_bytes, entry.quantized, entry.needs_imatrix,
            row_header=entry.row_header,
        )
        for entry in (own.own_types() if own else ())
        if not (entry.name in taken or entry.number in numbers or _INTERLEAVED.search(entry.name))
    })  # fmt: skip


@functools.cache
def native_formats() -> Mapping[str, Format]:
    """Return all types of the loaded ggml library, by ggml's name, in ggml's order."""
    lib = library.load()
    table: dict[str, Format] = {}
    for number, name in library.type_names().items():
        traits = lib.type_traits(number).contents
        table[name] = Format(
            name=name,
            id=number,
            block=int(traits.blck_size),
            block_bytes=int(traits.type_size),
            quantized=bool(traits.is_quantized),
            needs_imatrix=bool(lib.requires_imatrix(number)),
        )
    return MappingProxyType(table)


def _of_library(name: str) -> Format:
    return formats()[name]


@functools.cache
def _by_id() -> Mapping[int, Format]:
    return {entry.id: entry for entry in formats().values()}


def format_by_id(number: int) -> Format | None:
    """Return the format with ggml's type number, or None if the library does not know it."""
    return _by_id().get(number)


def format_named(name: str, among: Mapping[str, Format] | None = None) -> Format:
    """Return the format that a user names, in any case (`Q4_K`, `q4_k`), of all `formats` or of those `among` which to
    look. Raises UsageError with near names."""
    table = formats() if among is None else among
    known = {entry.name.lower(): entry for entry in table.values() if entry.for_weights}
    entry = known.get(name.strip().lower())
    if entry is not None:
        return entry
    near = difflib.get_close_matches(name.strip().lower(), known, n=4, cutoff=0.5)
    meant = f" Near names: {', '.join(known[n].name for n in near)}." if near else ""
    raise UsageError(
        f"{name!r} is not a tensor type of ggml {library.load().version}.{meant}",
        "Types have ggml's names, such as q4_K, iq3_xxs, q8_0, bf16; a mix such as Q4_K_M is not a type.",
    )


def select_formats(
    choice: str | Sequence[str],
    *,
    sets: Mapping[str, Sequence[str]] = FORMAT_SETS,
    named: Callable[[str], Format] = format_named,
) -> tuple[Format, ...]:
    """Return formats from names and named sets (comma-separated or a sequence), each once, smallest first.

    A `-` before a name or set takes it out again: `all,-iq1_s,-iq1_m`. `sets` and `named` say what words mean, where
    the formats are not ggml's. Raises UsageError for unknown names, for an empty choice and for a type that no kernel
    can quantize to.
    """
    words = choice.split(",") if isinstance(choice, str) else list(choice)
    words = [word.strip() for word in words if word.strip()]
    chosen: dict[str, Format] = {}
    if words and all(word.startswith("-") for word in words):
        words.insert(0, "all")
    for word in words:
        plain = word.removeprefix("-")
        names = sets.get(plain.lower(), (plain,))
        for entry in map(named, names):
            if word.startswith("-"):
                chosen.pop(entry.name, None)
            else:
                chosen[entry.name] = entry
    if not chosen:
        raise UsageError(
            "No types are left to choose from.",
            f"Name types, or sets of them: {', '.join(sets)}.",
        )
    return tuple(sorted(chosen.values(), key=lambda entry: (entry.bpw, entry.id)))
