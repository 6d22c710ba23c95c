"""All that there is to choose from: the curve of a model, what stands beside it, and the sizes worth publishing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from planner.fit import Context
from planner.plan.cards import Fit, check_fit, needs_of
from planner.plan.curve import MEMORIES, Curve, Landmark, curve, landmarks
from planner.plan.findings import Findings
from planner.plan.ladder import Ladder, choose_ladder
from planner.plan.mixes import MIXES
from planner.plan.request import PlanRequest
from planner.plan.target import Other

__all__ = ["MARGIN", "POINTS", "Offer", "make_offer"]

POINTS = 14
MARGIN = 2**30
"""Bytes that llama.cpp itself leaves free in a device's memory: its option fit-target (common/arg.cpp)."""


@dataclass(frozen=True)
class Offer:
    """The `curve`, the `landmarks` beside it by size, and the `ladder`, if one was asked for. `unknown` are mixes with
    types that were not measured, `reserve` the bytes left free in every memory, for a context of `tokens` where one was
    asked for."""

    curve: Curve
    landmarks: Sequence[Landmark]
    ladder: Ladder | None = None
    unknown: tuple[str, ...] = ()
    reserve: int = 0
    tokens: int | None = None


def make_offer(
    findings: Findings,
    request: PlanRequest,
    *,
    low: int | Fraction | None = Fraction(2),
    high: int | Fraction | None = Fraction(17, 2),
    points: int = POINTS,
    others: Sequence[Other] = (),
    mixes: bool = True,
    memories: Sequence[int] = (),
    reserve: int = MARGIN,
    ctx: int | None = None,
    ladder: int | None = None,
) -> Offer:
    """Work out the curve from `low` to `high`, what stands beside it, and the ladder.

    `others` are files, `mixes` tells whether llama.cpp's are wanted too; `memories` default to `MEMORIES`, in each of
    which `reserve` bytes are left free, and what llama.cpp takes for a context of `ctx` tokens. Raises what `curve`,
    `landmarks` and `choose_ladder` raise; with `ctx` also what `check_fit` and `needs_of` do.
    """
    if ctx is not None:
        context = Context(ctx)
        check_fit(Fit(context, vram=reserve), (), request.family)
        beside = needs_of(findings.inventory).beside(context)
        reserve += beside.total - beside.reserve
    found = curve(findings, request, points=points, low=low, high=high)
    wanted = tuple(MIXES) if mixes else ()
    marks = landmarks(found, findings, request, [*map(Other, wanted), *others], memories or MEMORIES, reserve)
    known = {entry.label for entry in marks if entry.kind == "mix"}
    rungs = None if ladder is None else choose_ladder(found, ladder, marks)
    return Offer(found, marks, rungs, tuple(mix for mix in wanted if mix not in known), reserve, ctx)
