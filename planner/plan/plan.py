"""Measurements + sensitivities + limits → solvers.Problem → Recipe. Works from the state alone, without the model."""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from planner.errors import BudgetError, StateFileError, UsageError, option
from planner.formats.registry import family_named
from planner.names.gguf import ahead
from planner.plan.accounting import compose_recipe, left_alone
from planner.plan.arrangement import arrange
from planner.plan.candidates import Candidate, Candidates, TiedGroup
from planner.plan.drafts import dropped_drafts
from planner.plan.findings import Findings
from planner.plan.limits import FILE, SizeLimit, size_limits
from planner.plan.prediction import link_of
from planner.plan.request import PlanRequest
from planner.plan.rules import Rule
from planner.recipe import Choice, Recipe
from planner.sizes import align
from planner.terms import FamilyName, Source
from solvers import (
    Explanation,
    InfeasibleError,
    Limit,
    Problem,
    ProblemError,
    Solution,
    explain,
    frontier,
    lightest,
    solve,
)
from state import Inventory, TensorRecord

if TYPE_CHECKING:  # what most plans do without
    from planner.plan.cards import Card
    from planner.plan.sweep import Sweep
    from planner.plan.target import Aim
    from planner.sensitivity import Prediction

__all__ = ["SWEEP_GAP", "LimitUse", "Plan", "Reached", "Solved", "make_plan", "sweep"]

_ANY_SIZE = 2**62  # bytes
SWEEP_GAP = 1e-3
"""Gap of what is solved for beside a sweep, to be shown in tables."""


class LimitUse(NamedTuple):
    """A limit at the answer, in its own unit (bytes or bits): `used` of `capacity`. `price` is the loss that one unit
    more would save. Unless it `binds`, every recipe that may be chosen stays within it."""

    name: str
    used: int
    capacity: int
    price: float
    binds: bool


class Solved(NamedTuple):
    """A problem, its solution, and the group of every tensor that a format was chosen for."""

    problem: Problem
    solution: Solution
    groups: Mapping[str, str]


class Reached(NamedTuple):
    """A target that the file reaches: no file that does has fewer bytes than `least`, which is proven."""

    aim: Aim
    least: int


@dataclass(frozen=True)
class Plan:
    """A recipe, and what is worth saying about it.

    `prediction` is the KL divergence to expect of its file, None without passes of the model. `sources` says where the
    sensitivity of each tensor came from. `left_out` are tensors that the recipe's engine does not load, or that were to
    be left out. `cards` hold a context beside their tensors, where one was asked for. `reached` says of a request for
    the smallest file what was reached.
    """

    recipe: Recipe
    limits: tuple[LimitUse, ...]
    prediction: Prediction | None
    sources: Mapping[str, str]
    left_out: tuple[str, ...]
    solved: Solved
    cards: tuple[Card, ...] = ()
    reached: Reached | None = None

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
    For a request with a target it is the smallest file that reaches it, and of those one of the least loss.
    """
    asked = arrange(findings, request, factors)
    inventory, losses, candidates = asked.inventory, asked.losses, asked.candidates
    aim = None
    if request.target is not None:
        from planner.plan.target import aim_at

        aim = aim_at(request.target, findings, losses.where(request.run_on), rounded=losses)
    given = size_limits(
        inventory, candidates.fixed, budget=_ANY_SIZE if aim and request.budget is None else request.budget,
        bpw=request.bpw, devices=request.devices, active=request.active,
    )  # fmt: skip
    cards: list[Card] = []
    if request.fit is not None:
        from planner.plan.cards import cards_of, limits_on_cards

        cards = cards_of(inventory, request.fit, request.devices)
        given = limits_on_cards(given, cards, candidates)
    limits = [limit.rounded(candidates) for limit in given]
    titles = [limit.title for limit in limits if limit.capacity < _ANY_SIZE]
    reached = None
    if aim is None:
        solved = _solve(inventory, candidates, limits, request)
    else:
        solved, reached = _smallest(inventory, candidates, limits, request, aim)
        titles.insert(0, aim.target.title)
        limits[0] = replace(limits[0], capacity=limits[0].overhead + int(solved.problem.limits[0].capacity))
    recipe = _recipe(inventory, candidates, "; ".join(titles), solved.solution, request.family, losses.source)
    link = link_of(findings, losses)
    return Plan(
        recipe=recipe,
        limits=tuple(_uses(limits, solved)),
        prediction=None if link is None or recipe.loss is None else link.predict(_but_drafts(recipe)),
        sources={name: losses.sensitivities[name].source for name in solved.groups},
        left_out=tuple(sorted(_left_out(findings.inventory, request))),
        solved=solved,
        cards=tuple(cards),
        reached=reached,
    )


def sweep(findings: Findings, request: PlanRequest) -> Sweep:
    """Return the files that lose least for their size, from the smallest to the largest, by the request's rules alone:
    its limits and its target are ignored. Raises what `make_plan` raises for rules and missing measurements."""
    asked = arrange(findings, request)
    inventory, candidates = asked.inventory, asked.candidates
    limits = size_limits(inventory, candidates.fixed, budget=_ANY_SIZE, bpw=None, devices=(), active=None)
    problem = _problem(inventory, candidates, limits)
    line, gap = frontier(problem), max(request.gap, SWEEP_GAP)

    def best(room: int) -> Solution | None:
        if room < line.weights[0]:
            return None
        return line.exact(room, method=request.method, gap=gap, time_limit=request.time_limit)

    def smallest(most: float) -> Solution | None:
        found = lightest(problem, FILE, most, method=request.method, gap=gap, time_limit=request.time_limit)
        return found.solution if found.found else None

    from planner.plan.sweep import Sweep

    return Sweep(
        inventory, candidates, line, best, smallest, asked.losses.source, link_of(findings, asked.losses)
    )  # fmt: skip


def _solve(inventory: Inventory, candidates: Candidates, limits: Sequence[SizeLimit], request: PlanRequest) -> Solved:
    problem = _problem(inventory, candidates, limits)
    with _as_ours(inventory, candidates, limits):
        solution = solve(problem, method=request.method, gap=request.gap, time_limit=request.time_limit)
    return _checked(problem, solution, candidates)


def _smallest(
    inventory: Inventory, candidates: Candidates, limits: Sequence[SizeLimit], request: PlanRequest, aim: Aim
) -> tuple[Solved, Reached]:
    """Solve for the smallest file that loses little enough; the first of the limits is that of the file."""
    problem = _problem(inventory, candidates, limits)
    with _as_ours(inventory, candidates, limits):
        found = lightest(problem, FILE, aim.most, method=request.method, gap=request.gap, time_limit=request.time_limit)
    solved = _checked(found.problem, found.solution, candidates)
    if found.found:
        assert found.least is not None
        return solved, Reached(aim, limits[0].overhead + int(found.least))
    within = "; ".join(limit.title for limit in limits if limit.capacity < _ANY_SIZE)
    what = f"loses at most {aim.most:.6g}{f', within {within}' if within else ''}"
    least = f"The least loss that there is{' there' if within else ''} is {found.solution.loss:.6g}"
    if found.least is not None:
        raise BudgetError(f"No recipe that {what} was found in time.", f"Give more with {option('time_limit')}.")
    raise BudgetError(
        f"No recipe {what} ({aim.target.title}). {least}.",
        f"Allow more loss, or loosen limits, {option('types')}, {option('pin')} and {option('max')}.",
    )


@contextlib.contextmanager
def _as_ours(inventory: Inventory, candidates: Candidates, limits: Sequence[SizeLimit]) -> Iterator[None]:
    try:
        yield
    except InfeasibleError as error:
        from planner.plan.conflicts import conflict

        raise conflict(error.analysis, limits, inventory, candidates) from error
    except ProblemError as error:
        raise UsageError(
            f"{error}.", f"Check {option('method')}, {option('gap')} and {option('time_limit')}."
        ) from error


def _checked(problem: Problem, solution: Solution, candidates: Candidates) -> Solved:
    if solution.picks is None:
        raise BudgetError("No recipe was found in time.", f"Give more time with {option('time_limit')}.")
    groups = {tensor.name: group.name for group in candidates.groups for tensor in group.tensors}
    return Solved(problem, solution, groups)


def _problem(inventory: Inventory, candidates: Candidates, limits: Sequence[SizeLimit]) -> Problem:
    groups = candidates.groups

    def flat(of: Callable[[TiedGroup], Iterable[float]], kind: type[np.number]) -> NDArray[Any]:
        return np.fromiter(itertools.chain.from_iterable(map(of, groups)), kind)

    def limited(limit: SizeLimit) -> Limit:  # under that of the file, options weigh their own bytes
        weights = None if limit.name == FILE else flat(limit.of, np.int64)
        return Limit(limit.name, limit.capacity - limit.overhead, weights=weights)

    try:
        return Problem.from_arrays(
            np.cumsum([0, *(len(group.options) for group in groups)]),
            flat(lambda group: group.totals(lambda _, entry: align(entry.nbytes, inventory.alignment)), np.int64),
            flat(lambda group: group.losses, np.float64),
            map(limited, limits),
            names=[group.name for group in groups],
            labels=[option[0].format.name for group in groups for option in group.options],
        )
    except (ProblemError, OverflowError) as error:
        raise StateFileError(
            f"What the state holds cannot be: {error}.", f"Measure the model again, into a new {option('state')}."
        ) from error


def _recipe(
    inventory: Inventory,
    candidates: Candidates,
    asked: str,
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
        inventory, choices, family=family, sensitivity=source, budget=asked,
        bound=min(solution.bound, loss), status=str(solution.status),
    )  # fmt: skip


def _uses(limits: Sequence[SizeLimit], solved: Solved) -> Iterator[LimitUse]:
    for limit, use in zip(limits, solved.solution.usage, strict=True):
        binds = limit.capacity < limit.overhead + solved.problem.extremes(limit.name)[1]
        yield LimitUse(limit.name, int(use.used + limit.overhead), limit.capacity, use.price, binds=binds)


def _left_out(inventory: Inventory, request: PlanRequest) -> set[str]:
    not_loaded = family_named(request.family).left_out(tensor.name for tensor in inventory.tensors)
    return not_loaded.union(dropped_drafts(inventory))


def _but_drafts(recipe: Recipe) -> float:
    """Return the loss of a recipe without that of draft heads, which no divergence shows."""
    drafted = ahead(recipe.formats)
    return (recipe.loss or 0.0) - sum(choice.loss or 0.0 for choice in recipe.tensors if choice.name in drafted)


def _choice(tensor: TensorRecord, entry: Candidate | None, pins: Mapping[str, Rule]) -> Choice:
    if entry is None:
        return left_alone(tensor)
    why = f"pinned: {pins[tensor.name].text}" if tensor.name in pins else "solved"
    return Choice(
        name=tensor.name, shape=tensor.shape, format=entry.format.name, bytes=entry.nbytes, err=entry.err,
        loss=entry.loss, why=why,
    )  # fmt: skip
