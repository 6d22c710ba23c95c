"""The few sizes of a model that are worth publishing: steps of equal visibility, at sizes that have a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.errors import UsageError, option
from planner.plan.curve import Curve, CurvePoint, Landmark, undominated
from planner.sensitivity import spread_of_ratios

__all__ = ["Ladder", "Rung", "choose_ladder"]

_NEAR = 1 / 5  # of a step: how far from its even place a rung may go for a reason

_SEEN = 0.01  # of the price: the least fall that is worth a word, and the least that the word can say


@dataclass(frozen=True, slots=True)
class Rung:
    """A size worth publishing, and why it is just that one."""

    point: CurvePoint
    reason: str


@dataclass(frozen=True, slots=True)
class Ladder:
    """`rungs`, the smallest first. From one to the next the loss falls to about `ratio` of what it was. `visible` is
    the greatest number of rungs whose steps are larger than what is known of predicted ratios; None if nothing is."""

    rungs: tuple[Rung, ...]
    ratio: float
    visible: int | None


def choose_ladder(curve: Curve, count: int, landmarks: Sequence[Landmark]) -> Ladder:
    """Choose `count` sizes between the ends of the curve.

    Losses of neighbours have about the same ratio, since a divergence is seen by its ratio to another. Within a fifth
    of a step of its even place a rung goes where there is a reason: to the most that a memory of the landmarks holds;
    else to the size of one of llama.cpp's mixes; else to the corner of the curve at which the price of
    a byte falls most. Raises UsageError for fewer than 2, and for a curve without so many sizes.
    """
    usable = [point for point in curve.points if point.loss > 0]
    if count < 2 or len(usable) < 2:
        what = f"{option('ladder', count)}: there are no so few steps." if count < 2 else "The curve is one size."
        raise UsageError(what, f"Give at least 2, and a range from {option('from')} to {option('to')}.")
    top, bottom = math.log(usable[0].loss), math.log(usable[-1].loss)
    step = (top - bottom) / (count - 1)
    rungs: list[Rung] = []
    for number in range(count):
        rung = _rung(curve, landmarks, top - number * step, step, (usable[0], usable[-1]))
        if not rungs or rung.point.bytes > rungs[-1].point.bytes:
            rungs.append(rung)
    if len(rungs) < count:
        raise UsageError(
            f"{option('ladder', count)}: there are only {len(rungs)} sizes that far apart.",
            f"Give fewer, or a wider range from {option('from')} to {option('to')}.",
        )
    spread = spread_of_ratios(curve.source)
    visible = None if spread is None else 1 + math.floor((top - bottom) / spread)
    return Ladder(tuple(rungs), math.exp(-step), visible)


def _rung(
    curve: Curve, landmarks: Sequence[Landmark], place: float, step: float, ends: tuple[CurvePoint, CurvePoint]
) -> Rung:
    def away(point: CurvePoint) -> float:
        return abs(math.log(point.loss) - place) / step if point.loss > 0 else math.inf

    def inside(point: CurvePoint | None) -> bool:
        return point is not None and ends[0].bytes <= point.bytes <= ends[1].bytes and away(point) <= _NEAR

    memories = [entry for entry in landmarks if entry.kind == "memory"]
    for kind in (memories, [entry for entry in undominated(landmarks) if entry.kind == "mix"]):
        near = [entry for entry in kind if inside(entry.ours)]
        if near:
            found = min(near, key=lambda entry: away(entry.ours) if entry.ours else math.inf)
            assert found.ours is not None
            return Rung(found.ours, _why(found, found.ours))
    point, fall = max(_bends(curve, place, step, ends), key=lambda bend: bend[1], default=(ends[1], 0.0))
    if fall >= _SEEN:
        return Rung(point, f"a corner: beyond it a byte saves {100 * fall:.0f} % less")
    even = curve.losing(math.exp(place)) or ends[1]
    return Rung(min(max(even, ends[0], key=_size), ends[1], key=_size), "an even step")


def _size(point: CurvePoint) -> int:
    return point.bytes


def _bends(
    curve: Curve, place: float, step: float, ends: tuple[CurvePoint, CurvePoint]
) -> Iterator[tuple[CurvePoint, float]]:
    low, high = math.exp(place - _NEAR * step), math.exp(place + _NEAR * step)
    for point, fall in curve.corners(low, high):
        if ends[0].bytes <= point.bytes <= ends[1].bytes:
            yield point, fall


def _why(landmark: Landmark, ours: CurvePoint) -> str:
    if landmark.kind == "memory":
        return f"the most that {landmark.label} hold"
    share = f", {100 * ours.loss / landmark.loss:.0f} % of its loss" if landmark.loss else ""
    return f"as large as {landmark.label}{share}"
