"""What an exporter hands back, and what an importer finds: the same for all dialects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from planner.errors import RecipeError
from planner.ggml import file_type_of
from planner.recipes.recipe import Choice, Recipe
from planner.recipes.regex import Regex

__all__ = [
    "Exported",
    "Rule",
    "changing",
    "file_type_of_choices",
    "first_match",
    "is_left_alone",
    "read_dictionary",
    "refuse",
    "type_names",
]


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


def is_left_alone(choice: Choice) -> bool:
    """Whether llama.cpp never changes the tensor."""
    return choice.why.startswith("left alone")


def changing(recipe: Recipe) -> list[Choice]:
    """The tensors that a quantizer decides about."""
    return [choice for choice in recipe.tensors if not is_left_alone(choice)]


def file_type_of_choices(choices: Iterable[Choice]) -> int:
    """`general.file_type` of a file with these tensors, by what a quantizer decides about, or else by all of it."""
    weights: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for choice in choices:
        weights[is_left_alone(choice)][choice.format] += prod(choice.shape)
    return file_type_of(weights[False] or weights[True])


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
                "Solve again without it: --types all,-" + choice.format + ".",
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


def first_match(rules: Sequence[Rule], names: Iterable[str]) -> dict[str, str]:
    """Name → type by the first rule that finds it; names that no rule finds are left out."""
    exact: dict[str, int] = {}
    others: list[tuple[int, Rule]] = []
    for number, rule in enumerate(rules):
        if rule.regex.literal is None:
            others.append((number, rule))
        else:
            exact.setdefault(rule.regex.literal, number)
    found = {}
    for name in names:
        best = exact.get(name, len(rules))
        for number, rule in others:
            if number >= best:
                break
            if rule.regex.search(name):
                best = number
                break
        if best < len(rules):
            found[name] = rules[best].type
    return found
