"""What an exporter hands back, and what an importer finds: the same for all dialects."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from planner.dialects.regex import Regex
from planner.errors import RecipeError, option
from planner.recipe import Choice, Recipe, is_left_alone
from planner.text import some

__all__ = [
    "Exported",
    "Found",
    "Rule",
    "changing",
    "first_match",
    "idle",
    "placed",
    "read_dictionary",
    "refuse",
    "type_names",
    "unheard",
]

_T = TypeVar("_T")

_MOST_NAMED = 6  # entries that one note names


@dataclass(frozen=True)
class Exported:
    """Another quantizer's input: `files` by suffix, the main one first. `command` says how to use them, `notes` what
    could only be said approximately. `imatrix` is where the command expects the recipe's imatrix in its older form."""

    files: Mapping[str, str]
    command: str = ""
    notes: Sequence[str] = ()
    imatrix: Path | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors that `regex` finds have the type called `type` (as the file spells it)."""

    regex: Regex
    type: str


@dataclass(frozen=True)
class Found:
    """Formats by tensor; `notes` say what was only nearly so, and what had no say."""

    formats: Mapping[str, str]
    notes: tuple[str, ...] = ()


def changing(recipe: Recipe) -> list[Choice]:
    """The tensors that a quantizer decides about."""
    return [choice for choice in recipe.tensors if not is_left_alone(choice)]


def refuse(names: Iterable[str], sayable: Callable[[str], object], who: str, why: str, remedy: str) -> None:
    """Raise RecipeError for the first name that a dialect cannot say."""
    for name in names:
        if not sayable(name):
            raise RecipeError(f"{who} cannot be told about the tensor {name!r}: {why}.", remedy)


def type_names(recipe: Recipe, known: Iterable[str], who: str) -> None:
    """Raise RecipeError for a format that a dialect has no name for."""
    names = set(known)
    for choice in recipe.tensors:
        if choice.format not in names and not is_left_alone(choice):
            raise RecipeError(
                f"{who} has no type {choice.format}, which {choice.name} has.",
                f"Solve again without it: {option('types', 'all,-' + choice.format)}.",
            )


def read_dictionary(text: str, where: str, what: str) -> dict[str, object]:
    """JSON of a dictionary. Raises RecipeError, saying `what` it should be."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where} is not JSON: {error}.", f"Give {what} as JSON.") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{where} holds no dictionary.", f"Give {what} as JSON.")
    return found


def first_match(rules: Sequence[Rule], names: Sequence[str], order: str = "") -> Found:
    """Name → type by the first rule that finds it; names that no rule finds are left out. Notes name the rules that
    find nothing, and those whose tensors all had been taken, with what is to be said of the dialect's `order`."""
    exact: dict[str, int] = {}
    others: list[tuple[int, Rule]] = []
    for number, rule in enumerate(rules):
        if rule.regex.literal is None:
            others.append((number, rule))
        else:
            exact.setdefault(rule.regex.literal, number)
    decided: dict[str, int] = {}
    for name in names:
        best = exact.get(name, len(rules))
        for number, rule in others:
            if number >= best:
                break
            if rule.regex.search(name):
                best = number
                break
        if best < len(rules):
            decided[name] = best
    found = {name: rules[number].type for name, number in decided.items()}
    return Found(found, tuple(_without_a_say(rules, decided, order)))


def _without_a_say(rules: Sequence[Rule], decided: Mapping[str, int], order: str) -> list[str]:
    """Notes on rules that decide nothing: `decided` has the number of the rule that each name's type is from."""
    acting = set(decided.values())
    nothing, hidden = [], []
    for number, rule in enumerate(rules):
        if number in acting:
            continue
        if rule.regex.literal is not None:
            before = decided.get(rule.regex.literal)
        else:
            before = next((other for name, other in decided.items() if rule.regex.search(name)), None)
        shown = repr(rule.regex.pattern[:80])
        if before is None:
            nothing.append(shown)
        else:
            hidden.append(f"{shown} (behind {rules[before].regex.pattern[:80]!r})")
    return [*idle(nothing, "rule"), *unheard(hidden, f"{len(rules):,} rules", "before", order)]


def idle(entries: Sequence[str], what: str) -> list[str]:
    """A note on entries, each a `what`, that find no tensor of the model; none where there are none."""
    if not entries:
        return []
    many = len(entries) > 1
    return [f"{len(entries):,} {what}{'s' * many} find{'s' * (not many)} no tensor: {some(entries, _MOST_NAMED)}."]


def unheard(entries: Sequence[str], of: str, others: str, order: str = "") -> list[str]:
    """A note on entries that decide nothing, as `others` took what they find; `order` is what to say of that."""
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
    """Choices with the places that `place` knows for their names; notes on those that `who` has no place for: blocks
    that predict several tokens, which it leaves out, and others, for which holds what `otherwise` says.

    Raises RecipeError where none has a place.
    """
    found, unknown, left = [], [], []
    refused: RecipeError | None = None
    for choice in choices:
        if choice.name in skipped:
            left.append(choice.name)
            continue
        try:
            found.append((choice, place(choice.name)))
        except RecipeError as error:
            unknown.append(choice.name)
            refused = error
    if refused is not None and not found:
        raise refused
    if left and not found:
        raise RecipeError(
            f"{who} loads none of the recipe's tensors, such as {some(left)}.", "Export to another dialect."
        )
    notes = []
    if left:
        notes.append(f"{some(left)}: in layers that predict several tokens ahead (nextn), which {who} leaves out.")
    if unknown:
        notes.append(f"{some(unknown)}: {who} has no module for these that planner knows; {otherwise}.")
    return found, notes
