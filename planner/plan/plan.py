"""Measurements + sensitivities + limits → solvers.Problem → Recipe. Works from the state alone, without the model."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from planner.errors import BudgetError, StateFileError, UsageError, option
from planner.formats.ggml import Format
from planner.formats.registry import family_named
from planner.names.gguf import ahead
from planner.plan.accounting import compose_recipe, left_alone
from planner.plan.candidates import Candidate, Candidates
from planner.plan.cards import Card, cards_of, limits_on_cards
from planner.plan.families import fused_ties
from planner.plan.findings import Findings, not_measured
from planner.plan.limits import FILE, SizeLimit, causes, size_limits
from planner.plan.losses import Losses, calibration
from planner.plan.request import PlanRequest
from planner.plan.rules import Rule
from planner.recipe import Choice, Recipe
from planner.sensitivity import Prediction, Source, fit_link
from planner.sizes import align
from planner.terms import FamilyName
from solvers import (
    Change,
    Explanation,
    Group,
    Infeasibility,
    InfeasibleError,
    Limit,
    Option,
    Problem,
    ProblemError,
    Solution,
    explain,
    solve,
)
from state import Inventory, TensorRecord

__all__ = ["LimitUse", "Plan", "Solved", "make_plan"]


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A limit at the answer, in its own unit (bytes or bits): `used` of `capacity`. `price` is the loss that one unit
    more would save. Unless it `binds`, every recipe that may be chosen stays within it."""

    name: str
    used: int
    capacity: int
    price: float
    binds: bool


@dataclass(frozen=True)
class Solved:
    """A problem, its solution, and the group of every tensor that a format was chosen for."""

    problem: Problem
    solution: Solution
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """A recipe, and what is worth saying about it.

    `prediction` is the KL divergence to expect of its file, None without passes of the model. `sources` says where the
    sensitivity of each tensor came from. `left_out` are tensors that the recipe's engine does not load. `cards` hold a
    context beside their tensors, where one was asked for.
    """

    recipe: Recipe
    limits: tuple[LimitUse, ...]
    prediction: Prediction | None
    sources: Mapping[str, str]
    left_out: tuple[str, ...]
    solved: Solved
    cards: tuple[Card, ...] = ()

    @property
    def seconds(self) -> float:
        """How long solving took."""
        return self.solved.solution.seconds

    def __repr__(self) -> str:
        limits = "; ".join(f"{limit.name} {limit.used:,} of {limit.capacity:,}" for limit in self.limits)
        return f"<Plan: {self.recipe!r}, gap {self.recipe.gap:.2g}, {limits}>"

    @property
    def source(self) -> Source:
        """The source of the sensitivities."""
        return cast("Source", self.recipe.sensitivity)

    @property
    def unplaced(self) -> list[str]:
        """Tensors that `structure` was asked for and could not place; not draft heads, which have none."""
        if self.recipe.sensitivity in ("prior", "uniform", "measured"):  # which place nothing
            return []
        return [name for name, source in self.sources.items() if source == "prior" and name not in self.drafted]

    @property
    def drafted(self) -> list[str]:
        """Tensors of draft heads that a format was chosen for."""
        return sorted(ahead(self.sources))

    def tied_to(self, tensor: str) -> list[str]:
        """Return the other tensors that must have the same format."""
        groups = self.solved.groups
        return [name for name, group in groups.items() if group == groups[tensor] and name != tensor]

    def explain(self, tensor: str) -> Explanation:
        """Return why a tensor (and what is tied to it) has its format: the next better and worse one, and the prices.

        Raises UsageError for a tensor that no format was chosen for.
        """
        groups = self.solved.groups
        if tensor not in groups:
            near = difflib.get_close_matches(tensor, groups, n=3)
            raise UsageError(
                f"{tensor} is not a tensor that a format was chosen for.",
                f"Near names: {', '.join(near)}." if near else "`planner inspect` lists them.",
            )
        return explain(self.solved.problem, self.solved.solution, groups[tensor])


def make_plan(findings: Findings, request: PlanRequest, factors: Mapping[str, float] | None = None) -> Plan:
    """Solve for a request from what a state holds; `factors` multiply sensitivities of tensors.

    Raises StateFileError where measurements are missing, UsageError for rules that cannot be followed, BudgetError for
    limits that no recipe meets. Under limits that every recipe meets, the answer is the recipe of the least loss.
    """
    inventory = _inventory(findings, request)
    losses = findings.losses(request.sensitivity).times(factors or {})
    counted = losses.stored_as(inventory).in_family(request.family)
    candidates = Candidates(
        inventory, counted if request.run_on == "cpu" else counted.without_rounding(), allowed=request.formats,
        pins=request.pins, floors=request.floors, caps=request.caps,
        ties=(*request.ties, *fused_ties(inventory, request.family)), draft=request.draft,
    )  # fmt: skip
    given = size_limits(
        inventory, candidates.fixed, budget=request.budget, bpw=request.bpw, devices=request.devices,
        active=request.active,
    )  # fmt: skip
    cards = cards_of(inventory, request.fit, request.devices)
    on_cards = limits_on_cards(given, cards, candidates)
    limits = [limit.rounded(candidates) for limit in on_cards]
    solved = _solve(inventory, candidates, limits, request)
    recipe = _recipe(inventory, candidates, limits, solved.solution, request.family, losses.source)
    return Plan(
        recipe=recipe,
        limits=tuple(_uses(limits, solved)),
        prediction=_prediction(findings, losses, recipe),
        sources={name: losses.sensitivities[name].source for name in solved.groups},
        left_out=tuple(sorted(family_named(request.family).left_out(t.name for t in findings.inventory.tensors))),
        solved=solved,
        cards=tuple(cards),
    )


def _inventory(findings: Findings, request: PlanRequest) -> Inventory:
    """Return the model as the request's family stores it. Raises StateFileError and UsageError where formats were not
    measured."""
    family = family_named(request.family)
    measured = {fmt for _, fmt in findings.measurements if fmt in family.formats}
    if not measured:
        raise not_measured(findings.path, request.family, others=True)
    inventory = family.inventory(findings.inventory)
    _check_measured(inventory, measured, request.formats or ())
    return inventory


def _check_measured(inventory: Inventory, measured: Collection[str], wanted: Iterable[Format]) -> None:
    """Raise UsageError for formats that some tensor could take and that were never measured."""
    unmeasured = [fmt for fmt in wanted if fmt.name not in measured]
    if not unmeasured:
        return
    from planner.gguf import requires_imatrix  # takes a while to load, and is mostly not needed

    with_imatrix = inventory.imatrix_digest is not None

    def possible(fmt: Format) -> bool:
        return any(
            tensor.left_alone is None
            and tensor.source_format != fmt.name
            and fmt.fits(tensor.row_length)
            and (with_imatrix or not requires_imatrix(tensor.name, fmt))
            for tensor in inventory.tensors
        )

    missing = [fmt.name for fmt in unmeasured if possible(fmt)]
    if missing:
        raise UsageError(
            f"Nothing was measured as {', '.join(missing)}.",
            "Give the model, so that it can be measured: planner solve MODEL --types ...",
        )


def _solve(inventory: Inventory, candidates: Candidates, limits: Sequence[SizeLimit], request: PlanRequest) -> Solved:
    problem = _problem(inventory, candidates, limits)
    try:
        solution = solve(problem, method=request.method, gap=request.gap, time_limit=request.time_limit)
    except InfeasibleError as error:
        raise _conflict(error.analysis, limits, inventory, candidates) from error
    except ProblemError as error:
        raise UsageError(
            f"{error}.", f"Check {option('method')}, {option('gap')} and {option('time_limit')}."
        ) from error
    if solution.picks is None:
        raise BudgetError("No recipe was found in time.", f"Give more time with {option('time_limit')}.")
    return Solved(
        problem, solution, {tensor.name: group.name for group in candidates.groups for tensor in group.tensors}
    )


def _problem(inventory: Inventory, candidates: Candidates, limits: Sequence[SizeLimit]) -> Problem:
    groups = [
        Group(
            group.name,
            [
                Option(
                    sum(align(entry.nbytes, inventory.alignment) for entry in option),
                    sum(entry.loss for entry in option),
                    option[0].format.name,
                )
                for option in group.options
            ],
        )
        for group in candidates.groups
    ]

    def weights_under(limit: SizeLimit) -> dict[str, list[int]] | None:
        if limit.name == FILE:  # there, options weigh their own bytes
            return None
        return {group.name: weights for group in candidates.groups if any(weights := limit.of(group))}

    try:
        return Problem.from_groups(
            groups,
            [Limit(limit.name, limit.capacity - limit.overhead, weights=weights_under(limit)) for limit in limits],
        )
    except ProblemError as error:
        raise StateFileError(
            f"What the state holds cannot be: {error}.", f"Measure the model again, into a new {option('state')}."
        ) from error


def _conflict(
    analysis: Infeasibility, limits: Sequence[SizeLimit], inventory: Inventory, candidates: Candidates
) -> BudgetError:
    """Return the error that says, in the user's terms, which limits cannot hold together and what would help."""
    by_name = {limit.name: limit for limit in limits}

    def raised(change: Change) -> str:
        enough = "" if change.least else " (a little less may do)"
        return " and ".join(
            f"{by_name[name].asked_by} to {by_name[name].format_amount(value + by_name[name].overhead, up=True)}"
            for name, value in change.capacities.items()
        ) + enough  # fmt: skip

    cures = ", or ".join(map(raised, analysis.changes)) or "one of them"
    remedy = f"Raise {cures}; or allow smaller formats with {option('types')}, {option('pin')} and {option('min')}."
    if len(analysis.limits) > 1:
        names = "; ".join(by_name[name].title for name in analysis.limits)
        return BudgetError(f"These limits cannot hold together: {names}.", remedy)
    limit = by_name[analysis.limits[0]]
    least = limit.format_amount(analysis.minimum[limit.name] + limit.overhead, up=True)
    return BudgetError(f"{limit.title} is below the minimum of {least}. {causes(limit, inventory, candidates)}", remedy)


def _recipe(
    inventory: Inventory,
    candidates: Candidates,
    limits: Sequence[SizeLimit],
    solution: Solution,
    family: FamilyName,
    source: Source,
) -> Recipe:
    assert solution.picks is not None
    chosen = {
        tensor.name: entry
        for group, pick in zip(candidates.groups, solution.picks, strict=True)
        for tensor, entry in zip(group.tensors, group.options[pick], strict=True)
    }
    choices = [_choice(tensor, chosen.get(tensor.name), candidates.pins) for tensor in inventory.tensors]
    loss = sum(choice.loss or 0.0 for choice in choices)
    return compose_recipe(
        inventory, choices, family=family, sensitivity=source,
        budget="; ".join(limit.title for limit in limits),
        bound=min(solution.bound, loss), status=str(solution.status),
    )  # fmt: skip


def _uses(limits: Sequence[SizeLimit], solved: Solved) -> Iterator[LimitUse]:
    for limit, use in zip(limits, solved.solution.usage, strict=True):
        binds = limit.capacity < limit.overhead + solved.problem.extremes(limit.name)[1]
        yield LimitUse(limit.name, int(use.used + limit.overhead), limit.capacity, use.price, binds=binds)


def _prediction(findings: Findings, losses: Losses, recipe: Recipe) -> Prediction | None:
    """Return the divergence to expect of a recipe; None without passes. The files that it is fitted to were evaluated
    on a CPU, so `losses` count rounded activations, wherever this recipe's file will run. Draft heads do not count."""
    if losses.source != "measured" or recipe.loss is None:
        return None
    drafted = ahead(recipe.formats)
    drafts = sum(choice.loss or 0.0 for choice in recipe.tensors if choice.name in drafted)
    return fit_link(calibration(findings.passes, findings.inventory, losses)).predict(recipe.loss - drafts)


def _choice(tensor: TensorRecord, entry: Candidate | None, pins: Mapping[str, Rule]) -> Choice:
    if entry is None:
        return left_alone(tensor)
    why = f"pinned: {pins[tensor.name].text}" if tensor.name in pins else "solved"
    return Choice(
        name=tensor.name, shape=tensor.shape, format=entry.format.name, bytes=entry.nbytes, err=entry.err,
        loss=entry.loss, why=why,
    )  # fmt: skip
