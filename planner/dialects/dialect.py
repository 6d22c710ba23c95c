"""The interface of a dialect, and what several dialects need."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from planner.errors import RecipeError, option
from planner.names.transformers import bare
from planner.recipe import Choice, Recipe
from planner.text import some

__all__ = [
    "Dialect",
    "ExportContext",
    "Exported",
    "ImportContext",
    "Imported",
    "beginning",
    "changing",
    "idle",
    "last_of_each",
    "placed",
    "read_dictionary",
    "refuse",
    "type_names",
    "unheard",
    "with_own_names",
]

_T = TypeVar("_T")

_BEGINNING = 4000  # characters
_MOST_NAMED = 6  # entries that one note names


@dataclass(frozen=True, slots=True)
class ExportContext:
    """Input of a writer besides the recipe. `paths`: suffix → where that file will be; `compact`: merge tensors into
    few patterns; `threads` for the command that goes with the files."""

    paths: Mapping[str, Path]
    compact: bool = False
    threads: int = 1


@dataclass(frozen=True, slots=True)
class ImportContext:
    """Input of a reader besides the text: the `names` of the model's tensors, its `architecture`, and `where` the text
    is from, for messages."""

    names: Sequence[str]
    architecture: str
    where: str


@dataclass(frozen=True)
class Exported:
    """Another quantizer's input: `files` by suffix, the main one first. `command` tells how to use them, `notes` what
    could only be approximated. `imatrix` is where the command expects the recipe's imatrix in its older form."""

    files: Mapping[str, str]
    command: str = ""
    notes: Sequence[str] = ()
    imatrix: Path | None = None


@dataclass(frozen=True)
class Imported:
    """Formats by tensor. `notes` name approximations, and entries without effect."""

    formats: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """One quantizer's input; a module of a dialect has its own as DIALECT.

    `write` makes files of the `suffixes`, the main one first, of a recipe of one of the `families`; `read` says which
    formats a text gives tensors. Both raise RecipeError. `sniff` tells the dialect from others by the text of a file; a
    file whose name ends in `own_suffix` needs no sniffing. A dialect that only writes, or only reads, leaves the other
    out, here and in the registry.
    """

    write: Callable[[Recipe, ExportContext], Exported] | None = None
    suffixes: tuple[str, ...] = ()
    families: tuple[str, ...] = ("gguf",)
    read: Callable[[str, ImportContext], Imported] | None = None
    sniff: Callable[[str], bool] = lambda text: False
    own_suffix: str = ""


def beginning(text: str) -> str:
    """Return as much of a text as it takes to tell dialects apart, without leading white space."""
    return text.lstrip()[:_BEGINNING]


def with_own_names(imported: Imported, names: Collection[str]) -> Imported:
    """Return the same with the model's own `names` where these lack a prefix that models with vision have."""
    own = set(names)
    named = {
        name if name in own or bare(name) not in own else bare(name): kind for name, kind in imported.formats.items()
    }
    return Imported(named, imported.notes)


def last_of_each(pairs: Iterable[tuple[str, str]]) -> Imported:
    """Return the formats of (tensor, format) pairs. Of several for one tensor the last counts, and a note says so."""
    formats: dict[str, str] = {}
    again: dict[str, None] = {}
    for name, fmt in pairs:
        if formats.get(name, fmt) != fmt:
            again[name] = None
        formats[name] = fmt
    return Imported(formats, (f"{some(again)}: named again with another type; the last line counts.",) if again else ())


def changing(recipe: Recipe) -> list[Choice]:
    """Return the tensors whose type a quantizer decides."""
    return [choice for choice in recipe.tensors if not choice.left_alone]


def refuse(names: Iterable[str], sayable: Callable[[str], object], who: str, why: str, remedy: str) -> None:
    """Raise RecipeError for the first name that a dialect cannot express."""
    for name in names:
        if not sayable(name):
            raise RecipeError(f"{who} cannot be told about the tensor {name!r}: {why}.", remedy)


def type_names(recipe: Recipe, known: Iterable[str], who: str) -> None:
    """Raise RecipeError for a format that a dialect has no name for."""
    names = set(known)
    for choice in recipe.tensors:
        if choice.format not in names and not choice.left_alone:
            raise RecipeError(
                f"{who} has no type {choice.format}, which {choice.name} has.",
                f"Solve again without it: {option('types', 'all,-' + choice.format)}.",
            )


def read_dictionary(text: str, where: str, what: str) -> dict[str, object]:
    """Parse a JSON object. Raises RecipeError, saying `what` it should be."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where} is not JSON: {error}.", f"Give {what} as JSON.") from error
    if not isinstance(parsed, dict):
        raise RecipeError(f"{where} holds no dictionary.", f"Give {what} as JSON.")
    return parsed


def idle(entries: Sequence[str], what: str) -> list[str]:
    """Return a note on entries, each a `what`, that match no tensor of the model; empty if there are none."""
    if not entries:
        return []
    many = len(entries) > 1
    return [f"{len(entries):,} {what}{'s' * many} find{'s' * (not many)} no tensor: {some(entries, _MOST_NAMED)}."]


def unheard(entries: Sequence[str], of: str, others: str, order: str = "") -> list[str]:
    """Return a note on entries without effect, as `others` took all that they match; it ends with the remark
    `order`."""
    if not entries:
        return []
    decide = "decide" if len(entries) > 1 else "decides"
    return [
        f"{len(entries):,} of {of} {decide} nothing, as others {others} took every tensor that would be found: "
        f"{some(entries, _MOST_NAMED)}.{order}"
    ]


def placed(
    choices: Iterable[Choice], skipped: Collection[str], place: Callable[[str], _T], who: str, otherwise: str
) -> tuple[list[tuple[Choice, _T]], list[str]]:
    """Pair choices with the places that `place` finds for their names. Return notes on those that `who` has no place
    for: multi-token prediction blocks, which it leaves out, and others, for which `otherwise` says what happens.

    Raises RecipeError if none has a place.
    """
    pairs, unknown, left = [], [], []
    refused: RecipeError | None = None
    for choice in choices:
        if choice.name in skipped:
            left.append(choice.name)
            continue
        try:
            pairs.append((choice, place(choice.name)))
        except RecipeError as error:
            unknown.append(choice.name)
            refused = error
    if refused is not None and not pairs:
        raise refused
    if left and not pairs:
        raise RecipeError(
            f"{who} loads none of the recipe's tensors, such as {some(left)}.", "Export to another dialect."
        )
    notes = []
    if left:
        notes.append(f"{some(left)}: in layers that predict several tokens ahead (nextn), which {who} leaves out.")
    if unknown:
        notes.append(f"{some(unknown)}: {who} has no module for these that planner knows; {otherwise}.")
    return pairs, notes
