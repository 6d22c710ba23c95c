"""The data of a page: the whole problem of a plan, options and all, and where it comes from.

Names and formats are written once; bytes of options by shape, as tensors of one shape share them; errors and losses as
IEEE doubles, so that recipes that the page makes have the very numbers of the solver's.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np

from planner.dialects.llama_quantize import base_type, tensor_types
from planner.errors import RecipeError, UsageError, option
from planner.formats.ggml import file_type_of
from planner.formats.registry import all_formats, family_named
from planner.names.gguf import parse_name
from planner.plan.arrangement import Arranged, arrange
from planner.plan.assess import assess
from planner.plan.candidates import Candidates
from planner.plan.findings import Findings
from planner.plan.losses import Losses
from planner.plan.mixes import MIXES
from planner.plan.prediction import link_of
from planner.plan.request import PlanRequest
from planner.plan.target import Other, assess_other, unknown_loss
from planner.recipe import UNLESS_GIVEN, Recipe
from planner.report.page.memory import memory_data
from planner.sensitivity import SCATTER, Source
from planner.sizes import align
from planner.terms import FamilyName
from planner.text import command

__all__ = ["Start", "page_data"]

_PINNED = "pinned: "  # how a recipe says why

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Start:
    """What a page opens with: a recipe with its pins; or a size, in bytes or in bits per weight."""

    recipe: Recipe | None = None
    budget: int | None = None
    bpw: float | None = None


def page_data(
    findings: Findings,
    request: PlanRequest,
    start: Start,
    *,
    beside: Sequence[Other] = (),
    made_by: Sequence[str | Path] = (),
) -> dict[str, object]:
    """Return the data of a page, as JSON has it: the problem of `request`, without its limits; its pins can be undone.

    `beside` are files to show in the chart, as llama.cpp's own mixes are; `made_by` the words of the command that makes
    the page again. Raises what `make_plan` raises for rules, RecipeError for a start with a recipe of another model or
    family, UsageError for pins to formats that are not among the options, and what `assess_other` raises.
    """
    _check_start(findings, request, start.recipe)
    sensitivity = request.sensitivity or _source_of(findings, start.recipe)
    request = replace(request, sensitivity=sensitivity)
    asked = arrange(findings, replace(request, pins=()))
    picks = None if start.recipe is None else _picks(asked.candidates, start.recipe)
    return {
        **_provenance(findings, asked, request.family, made_by),
        **_tensors(asked),
        "given": None if start.recipe is None or picks is None else {
            "picks": picks, "size": start.recipe.size, "budget": start.recipe.budget,
        },
        "start": {"bytes": start.budget if start.recipe is None else start.recipe.size, "bpw": start.bpw},
        "pins": _pins(findings, request, asked.candidates, start.recipe),
        "link": _link(findings, asked.losses),
        "marks": [*_marks(findings, asked, request, beside)],
        "memory": memory_data(asked.inventory, request.family),
    }  # fmt: skip


def _check_start(findings: Findings, request: PlanRequest, recipe: Recipe | None) -> None:
    """Raise RecipeError for a recipe of another model or family."""
    if recipe is None:
        return
    inventory = findings.inventory
    if recipe.model.digest != inventory.model_digest:
        raise RecipeError(
            f"The recipe is for another model: {recipe.model.name}, not {inventory.model_name}.",
            f"Give the state that it was made with: {option('state', 'FILE')}.",
        )
    if recipe.family != request.family:
        raise RecipeError(
            f"The recipe is of the family {recipe.family}, not {request.family}.",
            f"Ask for {option('family', recipe.family)}.",
        )


def _source_of(findings: Findings, recipe: Recipe | None) -> Source | None:
    """Return the source of sensitivities that a recipe was made by, where the state still has it; None for the best."""
    known: tuple[Source, ...] = get_args(Source)
    said = None if recipe is None else next((source for source in known if source == recipe.sensitivity), None)
    return None if said == "measured" and findings.best_source != "measured" else said


def _provenance(
    findings: Findings, asked: Arranged, name: FamilyName, made_by: Sequence[str | Path]
) -> dict[str, object]:
    recipe, family = assess(findings.inventory, {}, asked.losses, family=name, why="").recipe, family_named(name)
    head = recipe.model_dump(mode="json", exclude={"tensors", "size", "bpw", "loss", "bound", "status", "budget"})
    of_one = [recipe.model_copy(update={"file_type": file_type_of({fmt: 1})}) for fmt in _formats(asked)]
    return {
        "recipe": {key: value for key, value in head.items() if key not in UNLESS_GIVEN or value is not None},
        "wholeFile": family.whole_file,
        "formats": [
            {
                "name": fmt, "quantized": all_formats()[fmt].quantized, "fileType": shown.file_type,
                "base": base_type(shown),
            }
            for fmt, shown in zip(_formats(asked), of_one, strict=True)
        ],
        "typeFile": _sayable(recipe),
        "exportedTo": family.exported_to,
        "command": command(*made_by),
        "state": findings.path.name,
        "files": sum(not entry.errors for entry in findings.passes),
    }  # fmt: skip


def _sayable(recipe: Recipe) -> bool:
    """Return whether llama-quantize can be told recipes of this model."""
    if not family_named(recipe.family).in_llama_cpp:
        return False
    try:
        tensor_types(recipe)
    except RecipeError:
        return False
    return True


def _formats(asked: Arranged) -> list[str]:
    """Return the names of all formats that a tensor has or may take, the smallest first."""
    free = {entry.format.name for group in asked.candidates.groups for every in group.options for entry in every}
    kept = {tensor.source_format for tensor in asked.candidates.fixed}
    return sorted(free | kept, key=lambda name: (all_formats()[name].bpw, name))


def _tensors(asked: Arranged) -> dict[str, object]:
    """Return tensors in the model's order, as columns; `numbers` are error and loss of every option of every tensor
    that has any, in that order."""
    inventory, candidates = asked.inventory, asked.candidates
    formats = {name: index for index, name in enumerate(_formats(asked))}
    groups = {tensor.name: g for g, group in enumerate(candidates.groups) for tensor in group.tensors}
    place = {tensor.name: t for group in candidates.groups for t, tensor in enumerate(group.tensors)}
    sets, shapes, roles = _Table[tuple[int, ...]](), _Table[tuple[int, ...]](), _Table[str]()
    nbytes: dict[int, dict[int, int]] = {}
    columns, fixed, numbers = [], [], []
    for tensor in inventory.tensors:
        name = parse_name(tensor.name)
        g, shape = groups.get(tensor.name), shapes.of(tuple(tensor.shape))
        block = -1 if name.number is None or len(name.number) > 4 else int(name.number)
        columns.append((tensor.name, shape, -1 if g is None else g, block, roles.of(name.tower + name.role)))
        if g is None:
            fixed.append((formats[tensor.source_format], tensor.nbytes, tensor.left_alone))
            continue
        for every in candidates.groups[g].options:
            entry = every[place[tensor.name]]
            nbytes.setdefault(shape, {})[formats[entry.format.name]] = entry.nbytes
            numbers += [entry.err, entry.loss]
    overhead = inventory.header_bytes + sum(
        align(tensor.nbytes, inventory.alignment) for tensor in inventory.tensors if tensor.left_alone is not None
    )
    names, of_shape, of_group, blocks, of_role = zip(*columns, strict=True)
    choices = [sets.of(tuple(formats[o[0].format.name] for o in group.options)) for group in candidates.groups]
    return {
        "header": inventory.header_bytes, "overhead": overhead, "alignment": inventory.alignment,
        "elements": sum(tensor.elements for tensor in inventory.tensors),
        "names": names, "shapeOf": of_shape, "groupOf": of_group, "blockOf": blocks, "roleOf": of_role,
        "shapes": shapes.entries, "roles": roles.entries, "choices": choices, "sets": sets.entries,
        "bytes": [[[fmt, size] for fmt, size in nbytes.get(s, {}).items()] for s in range(len(shapes.entries))],
        "fixed": fixed,
        "numbers": base64.b64encode(np.array(numbers, "<f8").tobytes()).decode(),
    }  # fmt: skip


class _Table(dict[Key, int]):
    """Values, each written once and then called by its number."""

    @property
    def entries(self) -> list[Key]:
        return list(self)

    def of(self, value: Key) -> int:
        return self.setdefault(value, len(self))


def _picks(candidates: Candidates, recipe: Recipe) -> list[int] | None:
    """Return the option of each group in a recipe; None where it has what is no option, as after an edit."""
    picks = []
    for group in candidates.groups:
        wanted = {recipe.formats.get(tensor.name) for tensor in group.tensors}
        found = [index for index, entries in enumerate(group.options) if {entries[0].format.name} == wanted]
        if not found:
            return None
        picks.append(found[0])
    return picks


def _pins(
    findings: Findings, request: PlanRequest, candidates: Candidates, recipe: Recipe | None
) -> list[tuple[int, int]]:
    """Return group and option of every pin: of a recipe, and those that are asked for instead or besides. Raises
    UsageError for one that is no option."""
    wanted = {} if recipe is None else {
        choice.name: (choice.format, choice.why.removeprefix(_PINNED))
        for choice in recipe.tensors if choice.why.startswith(_PINNED)
    }  # fmt: skip
    asked = arrange(findings, request).candidates.pins if request.pins else {}
    wanted |= {name: (rule.format.name, rule.text) for name, rule in asked.items()}
    pins: dict[int, int] = {}
    for g, group in enumerate(candidates.groups):
        names = [entries[0].format.name for entries in group.options]
        for tensor in group.tensors:
            fmt, text = wanted.get(tensor.name, (None, ""))
            if fmt is None:
                continue
            if fmt not in names or pins.setdefault(g, names.index(fmt)) != names.index(fmt):
                raise UsageError(
                    f"{option('pin', text)}: {tensor.name} cannot be pinned to {fmt} here.",
                    f"Allow it with {option('types')}, {option('min')}, {option('max')} and {option('tie')}, or leave "
                    "the pin out.",
                )
    return list(pins.items())


def _link(findings: Findings, losses: Losses) -> Mapping[str, object] | None:
    """Return the curve from losses to divergences (`planner.sensitivity.link`), where passes of the model say it."""
    link = link_of(findings, losses)
    return None if link is None else {
        "parameters": link.parameters.tolist(), "covariance": link.covariance.tolist(), "scatter": SCATTER,
    }  # fmt: skip


def _marks(
    findings: Findings, asked: Arranged, request: PlanRequest, beside: Sequence[Other]
) -> Iterator[dict[str, object]]:
    """Yield files, and llama.cpp's mixes as far as their types were measured, with losses by the page's measure. Raises
    UsageError for a file whose types were not, RecipeError for one of another model."""
    losses = asked.losses.where(request.run_on)
    mixes = map(Other, MIXES) if family_named(request.family).exported_to is None else ()
    for other in (*beside, *mixes):
        found, is_mix = assess_other(other, findings, losses), other.formats is None
        if found.recipe.loss is None and not is_mix:
            raise unknown_loss(other, found)
        if found.recipe.loss is not None:
            size = other.bytes or found.recipe.size
            yield {"name": other.label, "size": size, "loss": found.recipe.loss, "mix": is_mix}
