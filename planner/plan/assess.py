"""Assessment of a choice of formats made elsewhere: its sizes, errors and losses from what the state holds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from planner.errors import RecipeError, UsageError
from planner.formats.ggml import CANDIDATES, Format, formats
from planner.formats.registry import Family, family_named
from planner.gguf import fallback
from planner.plan.accounting import compose_recipe, left_alone
from planner.plan.drafts import without_drafts
from planner.plan.losses import Losses
from planner.recipe import Choice, Recipe
from planner.recipe.recount import describe_change
from planner.terms import FamilyName
from planner.text import command, some
from state import Inventory, TensorRecord

__all__ = ["Assessment", "assess", "reassess"]


@dataclass(frozen=True)
class Assessment:
    """A recipe, with `notes` on where it departs from the request and on what is unknown."""

    recipe: Recipe
    notes: tuple[str, ...]


def assess(
    inventory: Inventory,
    wanted: Mapping[str, str],
    losses: Losses | None,
    *,
    family: FamilyName = "gguf",
    why: str,
    budget: str = "as imported",
    status: str = "imported",
) -> Assessment:
    """Return the recipe that gives tensors the formats in `wanted` (in any case) and keeps all others as they are
    stored. Formats are of one `family`.

    What llama.cpp leaves alone stays; where blocks do not fill a row, llama.cpp's fallback is taken; `notes` say so.
    Raises RecipeError for a format that ggml does not know, and if no named tensor is in the model.
    """
    chosen = family_named(family)
    inventory = chosen.inventory(inventory)
    losses = None if losses is None else losses.stored_as(inventory)
    names = {tensor.name for tensor in inventory.tensors}
    foreign = [name for name in wanted if name not in names]
    if wanted and len(foreign) == len(wanted):
        near = difflib.get_close_matches(foreign[0], names, n=1)
        raise RecipeError(
            f"None of the tensors is one of {inventory.model_name}: {', '.join(foreign[:3])}.",
            f"Give the model that it is for{f' (it has {near[0]})' if near else ''}.",
        )
    kept: list[str] = []
    unnamed: list[str] = []
    replaced: list[str] = []
    choices = []
    for tensor in inventory.tensors:
        text = wanted.get(tensor.name)
        if tensor.left_alone is not None:
            choices.append(left_alone(tensor))
            if text is not None and text.lower() != tensor.source_format.lower():
                kept.append(tensor.name)
            continue
        if text is None:
            unnamed.append(tensor.name)
            choices.append(_choice(tensor, formats()[tensor.source_format], losses, "not named: stays as it is"))
            continue
        same = text.lower() == tensor.source_format.lower()
        asked = formats()[tensor.source_format] if same else _named(tensor, text, chosen)
        fmt = asked if same or not chosen.substitutes else _substitute(tensor, asked)
        if fmt is not asked:
            replaced.append(f"{tensor.name} {fmt.name} for {asked.name}")
        choices.append(_choice(tensor, fmt, losses, why))
    recipe = compose_recipe(
        inventory,
        choices,
        family=family,
        sensitivity="none" if losses is None else losses.source,
        budget=budget,
        status=status,
    )
    unknown = [] if losses is None else [choice.name for choice in choices if choice.loss is None]
    return Assessment(recipe, tuple(_notes(foreign, kept, unnamed, replaced, unknown, recipe)))


def _named(tensor: TensorRecord, text: str, family: Family) -> Format:
    try:
        fmt = family.named(text)
    except UsageError as error:
        raise RecipeError(f"{tensor.name}: {error.problem}", error.remedy) from error
    if not family.substitutes:
        fmt.check_rows(tensor.name, tensor.row_length)
    return fmt


def _substitute(tensor: TensorRecord, asked: Format) -> Format:
    try:
        return fallback(asked, tensor.row_length)
    except RecipeError as error:
        able = [name for name in CANDIDATES if formats()[name].fits(tensor.row_length)]
        remedy = f"Possible are {', '.join((*able, 'f16', 'bf16'))}."
        raise RecipeError(f"{tensor.name} cannot be {asked.name}. {error.problem}", remedy) from error


def _choice(tensor: TensorRecord, fmt: Format, losses: Losses | None, why: str) -> Choice:
    nbytes = fmt.tensor_bytes(tensor.shape)
    known = losses.error_and_loss(tensor.name, fmt.name) if losses else None
    err, loss = known or (None, None)
    return Choice(name=tensor.name, shape=tensor.shape, format=fmt.name, bytes=nbytes, err=err, loss=loss, why=why)


def _notes(
    foreign: list[str], kept: list[str], unnamed: list[str], replaced: list[str], unknown: list[str], recipe: Recipe
) -> list[str]:
    notes = []
    if foreign:
        notes.append(f"{some(foreign)}: not in this model, left out.")
    if kept:
        notes.append(f"{some(kept)}: llama.cpp never quantizes these, so they stay as they are.")
    if unnamed:
        notes.append(f"{some(unnamed)}: not named, so these stay as they are.")
    if replaced:
        notes.append(f"{some(replaced)}: the blocks of what was asked do not fill the rows; llama.cpp's substitute.")
    if unknown:
        types = sorted({choice.format for choice in recipe.tensors if choice.loss is None})
        again = ("planner", "measure", "MODEL", *family_named(recipe.family).option, "--types", ",".join(types))
        notes.append(f"{some(unknown)}: no error was measured, so the loss is not known. Measure it: {command(*again)}")
    return notes


def reassess(recipe: Recipe, inventory: Inventory, losses: Losses | None) -> Assessment:
    """Return a hand-edited recipe with sizes and losses recomputed; `notes` list what changed.

    This does more than `recount`, which knows neither the model nor its losses and rejects formats that have a fallback
    here. Raises RecipeError for another model's recipe, and for impossible formats.
    """
    if recipe.model.digest != inventory.model_digest:
        raise RecipeError(
            f"The recipe is for another model: {recipe.model.name}, not {inventory.model_name}.",
            "Give the model or the state that it was made with.",
        )
    family = recipe.family
    if recipe.draft == "drop":
        inventory = without_drafts(inventory)
    found = assess(
        inventory, recipe.formats, losses, family=family, why="imported", budget=recipe.budget, status="edited"
    )
    before = {choice.name: choice for choice in recipe.tensors}
    choices, changes = [], []
    for choice in found.recipe.tensors:
        old = before.get(choice.name)
        if old is None or (old.bytes, old.format) != (choice.bytes, choice.format):
            changes.append(describe_change(old, choice))
            choices.append(choice.model_copy(update={"why": "edited"}))
        elif _other_loss(old, choice, losses):
            changes.append(f"{choice.name} is now {choice.format}, of the same size: {_change(old, choice)}")
            choices.append(choice.model_copy(update={"why": "edited"}))
        else:
            kept = choice if choice.loss is not None else choice.model_copy(update={"err": old.err, "loss": old.loss})
            choices.append(kept.model_copy(update={"why": old.why}))
    if not changes and not found.notes:
        return Assessment(recipe, ())
    source = recipe.sensitivity if losses is None else losses.source
    stored = family_named(family).inventory(inventory)
    new = compose_recipe(stored, choices, family=family, sensitivity=source, budget=recipe.budget, status="edited")
    loss = f", loss {_number(recipe.loss)} → {_number(new.loss)}"
    changes.append(f"file: {recipe.size:,} → {new.size:,} bytes{loss}")
    return Assessment(new, (*found.notes, *changes))


def _other_loss(old: Choice, new: Choice, losses: Losses | None) -> bool:
    """Return whether the error belongs to another format: one measurement always gives the same error, to the last
    bit."""
    return losses is not None and None not in (old.err, new.err) and old.err != new.err


def _change(old: Choice, new: Choice) -> str:
    return f"error {_number(old.err)} → {_number(new.err)}"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
