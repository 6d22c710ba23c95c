"""Dialects of rules: patterns searched for in a tensor's name, of which the first match decides its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from planner.dialects.dialect import ImportContext, Imported, idle, unheard
from planner.dialects.regex import Regex
from planner.errors import RecipeError, option

__all__ = ["Rule", "first_match", "reader_of_rules"]

_MOST_RULES = 20_000  # several for each tensor of the largest models


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: tensors that `regex` matches have the type called `type` (as the file spells it)."""

    regex: Regex
    type: str


def reader_of_rules(
    parse: Callable[[str, str], list[Rule]], order: str = ""
) -> Callable[[str, ImportContext], Imported]:
    """Return a dialect's `read`, given its parser, which gets the text and its source; `order` as in `first_match`."""

    def read(text: str, context: ImportContext) -> Imported:
        where = context.where
        if (count := text.count("=")) > _MOST_RULES:
            raise RecipeError(f"{where} has {count:,} rules, more than any model needs.", "Merge them into patterns.")
        rules = parse(text, where)
        if not rules:
            raise RecipeError(f"{where} holds no rules.", "Give a file with PATTERN=TYPE in it.")
        imported = first_match(rules, context.names, order)
        if not imported.formats:
            raise RecipeError(
                f"No rule of {where} finds a tensor of the model: the first is {rules[0].regex.pattern[:80]!r}.",
                f"Give the model that the rules are for, or the right {option('from')}.",
            )
        return imported

    return read


def first_match(rules: Sequence[Rule], names: Sequence[str], order: str = "") -> Imported:
    """Give each name the type of the first rule that matches it; names that no rule matches are left out. Notes name
    rules without a match, and those whose tensors earlier rules took, and end with `order`, a remark on the dialect's
    order."""
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
    types = {name: rules[number].type for name, number in decided.items()}
    return Imported(types, tuple(_without_a_say(rules, decided, order)))


def _without_a_say(rules: Sequence[Rule], decided: Mapping[str, int], order: str) -> list[str]:
    """Return notes on rules without effect; `decided` has the number of the rule that each name's type is from."""
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
