"""The trade-off of size against loss as a picture, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from planner.errors import UsageError
from planner.plan.curve import undominated
from planner.report.columns import shown

if TYPE_CHECKING:
    from planner.plan.curve import CurvePoint, Landmark
    from planner.plan.offer import Offer

__all__ = ["curve_chart"]

_BLUE, _ORANGE, _GREY, _DARK, _LIGHT = "#1f5fa8", "#c8641e", "#8a8f98", "#2b2f36", "#d9dce1"
_SIZE, _DPI = (9.6, 5.8), 150  # inches, and dots an inch
_LONGEST = 40  # characters of a name


def curve_chart(offer: Offer, kind: Literal["png", "svg"]) -> bytes:
    """Draw the curve with the interval of its divergences (of losses where these are not known), other files, memories
    and the ladder. Raises UsageError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "Pictures need matplotlib, which is not installed.", "Run: pip install 'gguf-planner[plot]'"
        ) from error
    style = {"svg.hashsalt": "planner", "svg.fonttype": "path", "font.size": 9.5, "text.color": _DARK}
    with rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        _draw(figure.subplots(), offer)
        into = io.BytesIO()
        figure.savefig(into, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return into.getvalue()


def _draw(axes: Any, offer: Offer) -> None:
    points = [point for point in offer.curve.points if _height(point) > 0]
    known = points[0].prediction is not None
    unit, name = (1e9, "GB") if points[-1].bytes >= 1e9 else (1e6, "MB")
    across = [point.bytes / unit for point in points]
    axes.set_yscale("log")
    if known:
        spans = [point.prediction for point in points if point.prediction is not None]
        axes.fill_between(across, [s.low for s in spans], [s.high for s in spans], color=_BLUE, alpha=0.15, lw=0)
    axes.plot(across, [_height(point) for point in points], color=_BLUE, lw=2.2, zorder=4, label="planner")
    edge = (across[-1] - across[0]) * 0.06
    axes.set_xlim(across[0] - 1.5 * edge, across[-1] + edge)
    _memories(axes, [entry for entry in offer.landmarks if entry.kind == "memory"], unit)
    _others(axes, offer.landmarks, unit)
    if offer.ladder is not None:
        rungs = [rung.point for rung in offer.ladder.rungs]
        axes.plot(
            [point.bytes / unit for point in rungs], [_height(point) for point in rungs], "o", ms=7.5, mfc="white",
            mec=_BLUE, mew=2, zorder=6, label="worth publishing",
        )  # fmt: skip
        for point in rungs:
            axes.annotate(
                f"{point.bpw:.2f} bpw", (point.bytes / unit, _height(point)), xytext=(-7, -7), ha="right", va="top",
                textcoords="offset points", color=_BLUE, fontsize=8, zorder=7,
            )  # fmt: skip
    _frame(axes, offer, name, known=known)


def _memories(axes: Any, memories: Sequence[Landmark], unit: float) -> None:
    for entry in memories:
        at = entry.bytes / unit
        axes.axvline(at, color=_GREY, lw=0.8, ls=(0, (2, 3)), zorder=1)
        axes.annotate(
            entry.label, (at, 1), xycoords=("data", "axes fraction"), xytext=(-3, -4), textcoords="offset points",
            rotation=90, ha="right", va="top", color=_GREY, fontsize=8,
        )  # fmt: skip


def _others(axes: Any, landmarks: Sequence[Landmark], unit: float) -> None:
    named = undominated(landmarks)
    for kind, colour, mark, label in (("mix", _GREY, "o", "llama.cpp's mixes"), ("file", _ORANGE, "D", "other files")):
        entries = [entry for entry in landmarks if entry.kind == kind and _height(entry) > 0]
        if entries:
            axes.plot(
                [entry.bytes / unit for entry in entries], [_height(entry) for entry in entries], mark, ms=5,
                color=colour, zorder=5, label=label,
            )  # fmt: skip
        for entry in entries:
            if entry in named:
                name, at = shown(entry.label, _LONGEST), (entry.bytes / unit, _height(entry))
                _name(axes, name, at, _DARK, 40) if kind == "mix" else _name(axes, name, at, _ORANGE, 0)


def _name(axes: Any, name: str, at: tuple[float, float], colour: str, rotation: int) -> None:
    """Name what is above the curve upwards, what may lie on it beside it."""
    axes.annotate(
        name, at, xytext=(3, 4) if rotation else (7, 0), textcoords="offset points", color=colour, fontsize=7.5,
        zorder=7, rotation=rotation, rotation_mode="anchor", ha="left", va="bottom", parse_math=False,
    )  # fmt: skip


def _frame(axes: Any, offer: Offer, unit: str, *, known: bool) -> None:
    axes.set_xlabel(f"size of the file, {unit}", color=_DARK)
    axes.set_ylabel(
        "KL divergence expected, nats per token" if known else f"loss by {offer.curve.source}, up to scale",
        color=_DARK,
    )
    axes.set_title(shown(offer.curve.model, 80), loc="left", color=_DARK, fontsize=12, parse_math=False)
    axes.grid(visible=True, which="major", axis="y", color=_LIGHT, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_GREY, labelcolor=_DARK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.6)  # for the names of the uppermost
    axes.legend(frameon=False, loc="upper right", fontsize=9)


def _height(entry: CurvePoint | Landmark) -> float:
    """Return what is drawn upwards: the divergence, or the loss where it is not known."""
    return entry.prediction.kld if entry.prediction is not None else entry.loss or 0.0
