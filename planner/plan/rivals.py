"""What a plan has to stand against: recipes by other sensitivities, and mixes of llama.cpp that fit in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from planner.errors import BudgetError
from planner.formats.ggml import formats
from planner.formats.registry import family_named
from planner.gguf import requires_imatrix
from planner.plan.arrangement import arrange
from planner.plan.findings import Findings
from planner.plan.mixes import MIXES
from planner.plan.plan import Plan, make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import Rule
from planner.plan.target import Other, assess_other
from planner.recipe import Recipe
from planner.sensitivity import Source

__all__ = ["Rival", "rivals"]

_SOURCES: tuple[Source, ...] = ("measured", "structure", "structure+prior", "prior")  # the best first


@dataclass(frozen=True)
class Rival:
    """A recipe, and what to call it. `plan` is the plan that keeps it; None if it breaks a rule or a limit of the
    request, so that it is there to compare with only. `is_mix` tells llama.cpp's."""

    label: str
    recipe: Recipe
    plan: Plan | None
    is_mix: bool = False


def rivals(findings: Findings, request: PlanRequest, plan: Plan, label: str | None = None) -> list[Rival]:
    """Return the plan, which `label` names if it is not its source of sensitivities, and its rivals, no two alike.

    They are the answers to the same request by the other sources that the state has, and the mixes that are no larger
    than what was asked for: the largest, and the one that is expected to lose least. A request for a smallest file is
    taken as one for the size that was found. Raises what `make_plan` raises.
    """
    if request.target is not None:
        request = replace(request, budget=plan.recipe.size, target=None)
    found = [Rival(label or plan.source, plan.recipe, plan)]
    for source in _SOURCES:
        solved_already = source == plan.source and label is None
        if not solved_already and (source != "measured" or findings.best_source == "measured"):
            other = make_plan(findings, replace(request, sensitivity=source))
            found.append(Rival(source, other.recipe, other))
    if family_named(request.family).exported_to is None:
        for mix, recipe in _mixes(findings, request, plan):
            found.append(Rival(mix, recipe, _kept_as(findings, request, plan, mix, recipe.formats), is_mix=True))
    alike: dict[tuple[str, ...], Rival] = {}
    for rival in found:
        alike.setdefault(tuple(choice.format for choice in rival.recipe.tensors), rival)
    return list(alike.values())


def _mixes(findings: Findings, request: PlanRequest, plan: Plan) -> Iterator[tuple[str, Recipe]]:
    """Yield the largest mix that fits, and the one that is expected to lose least."""
    most = max(plan.recipe.size, request.budget or 0)
    losses = findings.losses(plan.source).where(request.run_on)
    fitting = {}
    for mix in MIXES:
        recipe = assess_other(Other(mix), findings, losses).recipe
        if recipe.size <= most and (recipe.imatrix is not None or not _needs_imatrix(recipe)):
            fitting[mix] = recipe
    if not fitting:
        return
    known = {mix: recipe.loss for mix, recipe in fitting.items() if recipe.loss is not None}
    largest = max(fitting, key=lambda mix: fitting[mix].size)
    for mix in dict.fromkeys((largest, min(known, key=known.__getitem__, default=largest))):
        yield mix, fitting[mix]


def _needs_imatrix(recipe: Recipe) -> bool:
    free = [choice for choice in recipe.tensors if not choice.left_alone]
    return any(requires_imatrix(choice.name, formats()[choice.format]) for choice in free)


def _kept_as(findings: Findings, request: PlanRequest, plan: Plan, mix: str, wanted: Mapping[str, str]) -> Plan | None:
    """Return the plan that has these formats, with the bound of the plan that it takes the place of; None where the
    request rules them out."""
    request = replace(request, sensitivity=plan.source)
    for group in arrange(findings, request).candidates.groups:
        formats_of = tuple(wanted[tensor.name] for tensor in group.tensors)
        if formats_of not in {tuple(entry.format.name for entry in option) for option in group.options}:
            return None
    free = {choice.name for choice in plan.recipe.tensors if not choice.left_alone}
    by_format: dict[str, list[str]] = {}
    for name, fmt in wanted.items():
        if name in free:
            by_format.setdefault(fmt, []).append(re.escape(name))
    pins = tuple(Rule(re.compile(f"^(?:{'|'.join(names)})$"), formats()[fmt], mix) for fmt, names in by_format.items())
    try:
        made = make_plan(findings, replace(request, pins=pins, floors=(), caps=(), formats=None))
    except BudgetError:
        return None
    tensors = tuple(
        choice if choice.left_alone else choice.model_copy(update={"why": f"as in {mix}"})
        for choice in made.recipe.tensors
    )
    changes = {"tensors": tensors, "bound": plan.recipe.bound, "status": f"as {mix}, which a check found better"}
    return replace(made, recipe=made.recipe.model_copy(update=changes))
