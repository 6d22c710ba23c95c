"""The whole trade-off of size against loss, and what stands beside it: other files, and memories that people have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from planner.errors import BudgetError, UsageError, option
from planner.plan.findings import Findings
from planner.plan.limits import FILE
from planner.plan.plan import SWEEP_GAP, Plan, make_plan, sweep
from planner.plan.request import PlanRequest
from planner.plan.sweep import Sweep
from planner.plan.target import Other, Target, assess_other, unknown_loss
from planner.sensitivity import Prediction

if TYPE_CHECKING:
    from solvers import Solution

__all__ = ["MEMORIES", "Curve", "CurvePoint", "Landmark", "curve", "landmarks", "undominated"]

MEMORIES = tuple(size * 2**30 for size in (6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96))
"""Bytes of the memories that people have, of graphics cards and others."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A recipe of least loss for its size: `bytes` of the file, bits of tensor data per weight, the sum of losses, the
    KL divergence to expect (None without passes), and the loss that one byte more would save."""

    bytes: int
    bpw: float
    loss: float
    prediction: Prediction | None
    price: float


@dataclass(frozen=True, slots=True)
class Landmark:
    """Something to measure the curve by: a `mix` of llama.cpp, a `file` that was given, or a `memory` with what is left
    free in it taken off `bytes`, which has neither bits nor loss.

    `ours` is the best that is no larger, `same` the smallest that loses no more; None where the curve has none.
    """

    kind: Literal["mix", "file", "memory"]
    label: str
    bytes: int
    bpw: float | None
    loss: float | None
    prediction: Prediction | None
    ours: CurvePoint | None
    same: CurvePoint | None


class _Line(Protocol):
    """All files that are the best of their size."""

    source: str
    ends: tuple[CurvePoint, CurvePoint]

    def within(self, size: int) -> CurvePoint | None: ...

    def losing(self, loss: float) -> CurvePoint | None: ...

    def corner(self, size: int) -> CurvePoint | None: ...

    def predict(self, loss: float) -> Prediction | None: ...


@dataclass(frozen=True)
class Curve:
    """Points of the trade-off, the smallest first. `source` of the sensitivities; `elements` of the whole model."""

    points: tuple[CurvePoint, ...]
    source: str
    elements: int
    model: str
    _line: _Line = field(repr=False)

    def within(self, size: int) -> CurvePoint | None:
        """Return the best file of at most `size` bytes, to a thousandth of its loss; None if there is none so small."""
        return self._line.within(size)

    def losing(self, loss: float) -> CurvePoint | None:
        """Return the smallest file, to a thousandth, that loses at most `loss`; None if every one loses more."""
        return self._line.losing(loss)

    def predict(self, loss: float) -> Prediction | None:
        """Return the KL divergence to expect of a loss; None without passes."""
        return self._line.predict(loss)

    def corners(self, low: float, high: float) -> Iterator[tuple[CurvePoint, float]]:
        """Yield the corners that lose between `low` and `high`, each with the share by which the price of a byte falls
        there. None under limits besides the size."""
        if isinstance(self._line, _Swept):
            yield from self._line.corners(low, high)


def curve(
    findings: Findings,
    request: PlanRequest,
    *,
    points: int,
    low: int | Fraction | None = None,
    high: int | Fraction | None = None,
) -> Curve:
    """Work out the curve from `low` to `high`, each bytes, bits per weight (a Fraction), or None for all that there is.

    Rules, types, sensitivities, devices and active bytes are the request's; its limits on the whole file and its target
    are ignored. `points` are spread evenly over the sizes, fewer where several are the same. Without other limits than
    the size, one sweep tells them all, and each is proven the best of its size; with such limits each is solved for.

    Ends beyond the smallest and the largest file are these. Raises what `make_plan` raises, and UsageError for a `low`
    above `high`.
    """
    line: _Line
    if request.devices or request.active is not None:
        line = _Solved(findings, request)
    else:
        line = _Swept(sweep(findings, request))
    elements = sum(tensor.elements for tensor in findings.inventory.tensors)
    smallest, largest = line.ends
    aside = smallest.bytes - smallest.bpw * elements / 8  # metadata and alignment

    def in_bytes(size: int | Fraction | None, end: CurvePoint) -> int:
        return end.bytes if size is None else size if isinstance(size, int) else int(size * elements / 8 + aside) + 1

    first, last = in_bytes(low, smallest), in_bytes(high, largest)
    if first > last:
        raise UsageError(f"{option('from')} is above {option('to')}: there is nothing between.", "Exchange them.")
    first, last = (min(max(end, smallest.bytes), largest.bytes) for end in (first, last))
    sizes = np.linspace(first, last, points).astype(np.int64).tolist()
    found = {point.bytes: point for point in map(line.corner, sizes) if point is not None}
    return Curve(
        tuple(found[size] for size in sorted(found)), line.source, elements, findings.inventory.model_name, line
    )


def landmarks(
    curve: Curve,
    findings: Findings,
    request: PlanRequest,
    others: Iterable[Other],
    memories: Sequence[int] = MEMORIES,
    reserve: int = 0,
) -> list[Landmark]:
    """Return what stands beside the curve, by size: other files, by the same losses, and memories with `reserve` bytes
    left free that the curve's range has files for. Mixes with types that were not measured are left out; other files
    with such raise UsageError, and those of other models RecipeError."""
    losses = findings.losses(request.sensitivity).where(request.run_on)
    found = []
    for other in others:
        assessed = assess_other(other, findings, losses)
        recipe = assessed.recipe
        if recipe.loss is None:
            if other.formats is None:
                continue
            raise unknown_loss(other, assessed)
        size = other.bytes or recipe.size
        found.append(
            Landmark(
                "mix" if other.formats is None else "file", other.label, size, recipe.bpw, recipe.loss,
                curve.predict(recipe.loss), curve.within(size), curve.losing(recipe.loss),
            )
        )  # fmt: skip
    smallest, largest = curve.points[0].bytes, curve.points[-1].bytes
    for memory in memories:
        if smallest <= memory - reserve <= largest:
            label, size = _memory(memory), memory - reserve
            found.append(Landmark("memory", label, size, None, None, None, curve.within(size), None))
    return sorted(found, key=lambda entry: entry.bytes)


def undominated(landmarks: Sequence[Landmark]) -> list[Landmark]:
    """Return files and those mixes of which no other mix is as small and loses as little."""
    mixes = [entry for entry in landmarks if entry.kind == "mix"]
    return [
        entry
        for entry in landmarks
        if entry.kind == "file"
        or (
            entry.kind == "mix"
            and not any(
                other.bytes <= entry.bytes and _loss(other) <= _loss(entry) and other is not entry for other in mixes
            )
        )
    ]


def _loss(entry: Landmark) -> float:
    return math.inf if entry.loss is None else entry.loss


def _memory(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (10**9, "GB"), (2**20, "MiB"), (10**6, "MB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size:,} bytes"


class _Swept:
    """Corners of the hull for the curve itself, all proven, and solutions for what stands beside it."""

    def __init__(self, found: Sweep) -> None:
        self._sweep, self.source = found, found.source
        self._last = len(found.frontier) - 1
        self.ends = self._at(0), self._at(self._last)

    def _at(self, corner: int) -> CurvePoint:
        line = self._sweep.frontier
        price = float(line.prices[corner]) if corner < self._last else 0.0
        return self._point(int(line.weights[corner]), line.picks(corner), float(line.losses[corner]), price)

    def _solved(self, solution: Solution | None) -> CurvePoint | None:
        if solution is None or solution.picks is None:
            return None
        return self._point(solution.bytes, solution.picks, solution.loss, solution.usage[0].price)

    def _point(self, room: int, picks: Sequence[int], loss: float, price: float) -> CurvePoint:
        return CurvePoint(self._sweep.overhead + room, self._sweep.bpw(picks), loss, self.predict(loss), price)

    def corner(self, size: int) -> CurvePoint:
        return self._at(self._sweep.frontier.corner(size - self._sweep.overhead))

    def within(self, size: int) -> CurvePoint | None:
        return self._solved(self._sweep.best(size - self._sweep.overhead))

    def losing(self, loss: float) -> CurvePoint | None:
        return self._solved(self._sweep.smallest(loss)) if loss >= 0 else None

    def predict(self, loss: float) -> Prediction | None:
        return None if self._sweep.link is None else self._sweep.link.predict(loss)

    def corners(self, low: float, high: float) -> Iterator[tuple[CurvePoint, float]]:
        losses, prices = self._sweep.frontier.losses, self._sweep.frontier.prices
        for corner in np.flatnonzero((losses >= low) & (losses <= high)).tolist():
            if 0 < corner < self._last:
                yield self._at(corner), float(1 - prices[corner] / prices[corner - 1])


class _Solved:
    """Files that are solved for, one by one, under limits besides the size."""

    def __init__(self, findings: Findings, request: PlanRequest) -> None:
        self._findings, self._request = findings, replace(request, bpw=None, budget=None, target=None)
        self._rough = replace(self._request, gap=max(request.gap, SWEEP_GAP))
        largest = make_plan(findings, self._request)
        self.source = str(largest.source)
        free = sweep(findings, request)
        self._link = free.link
        self.ends = _Swept(free).ends[0], self._point(largest)

    def _point(self, plan: Plan) -> CurvePoint:
        recipe = plan.recipe
        price = next((limit.price for limit in plan.limits if limit.name == FILE), 0.0)
        return CurvePoint(recipe.size, recipe.bpw, recipe.loss or 0.0, plan.prediction, price)

    def corner(self, size: int) -> CurvePoint | None:
        return self._answer(replace(self._request, budget=size))

    def within(self, size: int) -> CurvePoint | None:
        return self._answer(replace(self._rough, budget=size))

    def losing(self, loss: float) -> CurvePoint | None:
        return self._answer(replace(self._rough, target=Target(loss=loss))) if loss >= 0 else None

    def _answer(self, request: PlanRequest) -> CurvePoint | None:
        try:
            return self._point(make_plan(self._findings, request))
        except BudgetError:
            return None

    def predict(self, loss: float) -> Prediction | None:
        return None if self._link is None else self._link.predict(loss)
