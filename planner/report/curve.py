"""The trade-off of size against loss as text of 80 columns, as facts for JSON, and as rows for CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.plan.curve import undominated
from planner.report.columns import Column, labelled, shown, tabulate, wrapped
from planner.sizes import format_size

if TYPE_CHECKING:  # whose imports other commands need not wait for
    from planner.plan.curve import CurvePoint, Landmark
    from planner.plan.ladder import Ladder, Rung
    from planner.plan.offer import Offer
    from planner.sensitivity import Prediction

__all__ = ["FIELDS", "curve_facts", "curve_rows", "curve_text"]

FIELDS = (
    "kind", "label", "bytes", "bpw", "loss", "kld", "kld_low", "kld_high", "price", "ours_loss", "ours_kld",
    "same_bytes",
)  # fmt: skip
"""Columns of the rows."""


_POINTS: tuple[Column[CurvePoint], ...] = (
    Column("size", lambda point: format_size(point.bytes)),
    Column("bpw", lambda point: f"{point.bpw:.4f}"),
    Column("loss", lambda point: _number(point.loss)),
    Column("KLD", lambda point: _divergence(point.prediction)),
    Column("a byte more saves", lambda point: f"{point.price:.2g}" if point.price else ""),
)
_OTHERS: tuple[Column[Landmark], ...] = (
    Column("", lambda entry: shown(entry.label, 22), "<"),
    Column("size", lambda entry: format_size(entry.bytes)),
    Column("bpw", lambda entry: "" if entry.bpw is None else f"{entry.bpw:.4f}"),
    Column("loss", lambda entry: _number(entry.loss)),
    Column("KLD", lambda entry: _divergence(entry.prediction)),
    Column("ours", lambda entry: _change(entry.loss, entry.ours.loss if entry.ours else None)),
    Column("as good", lambda entry: _change(entry.bytes, entry.same.bytes if entry.same else None)),
)
_MEMORIES: tuple[Column[Landmark], ...] = (
    Column("memory", lambda entry: shown(entry.label, 22), "<"),
    Column("size", lambda entry: format_size(entry.ours.bytes) if entry.ours else ""),
    Column("bpw", lambda entry: f"{entry.ours.bpw:.4f}" if entry.ours else ""),
    Column("loss", lambda entry: _number(entry.ours.loss if entry.ours else None)),
    Column("KLD", lambda entry: _divergence(entry.ours.prediction if entry.ours else None)),
)
_RUNGS: tuple[Column[Rung], ...] = (
    Column("size", lambda rung: format_size(rung.point.bytes)),
    Column("bpw", lambda rung: f"{rung.point.bpw:.4f}"),
    Column("loss", lambda rung: _number(rung.point.loss)),
    Column("KLD", lambda rung: _divergence(rung.point.prediction)),
    Column("why", lambda rung: rung.reason, "<"),
)


def curve_text(offer: Offer) -> str:
    """Lay out the curve, what stands beside it, and the ladder."""
    curve, known = offer.curve, offer.curve.points[0].prediction is not None
    parts = ["\n".join(_without_kld(_POINTS, known, curve.points))]
    if shown_others := undominated(offer.landmarks):
        lines = _without_kld(_OTHERS, known, shown_others)
        hidden = sum(entry.kind == "mix" for entry in offer.landmarks) - sum(e.kind == "mix" for e in shown_others)
        more = f" {hidden} mixes that another beats in both are left out." if hidden else ""
        what = f"ours: the loss of our file of that size; as good: the size of ours of that loss.{more}"
        parts.append("\n".join([*lines, *wrapped(what)]))
    if offer.unknown:
        parts.append("\n".join(wrapped(f"With types that were not measured: {', '.join(offer.unknown)}.")))
    if memories := [entry for entry in offer.landmarks if entry.kind == "memory"]:
        lines = _without_kld(_MEMORIES, known, memories)
        context = "context" if offer.tokens is None else f"a context of {offer.tokens:,} tokens"
        free = f"{format_size(offer.reserve)} of each are left free for {context} and buffers." if offer.reserve else ""
        parts.append("\n".join([*lines, *wrapped(free)]).rstrip("\n"))
    if offer.ladder is not None:
        parts.append("\n".join([*_without_kld(_RUNGS, known, offer.ladder.rungs), *_step(offer.ladder, curve.source)]))
    unit = "KLD in nats per token" if known else "up to scale: without passes of the model there is no KLD"
    parts.append("\n".join(labelled("Loss", f"by {curve.source}; {unit}")))
    return "\n\n".join(parts)


def _without_kld(columns: Sequence[Column[Any]], known: bool, items: Sequence[Any]) -> list[str]:
    return tabulate([column for column in columns if known or column.heading != "KLD"], items)


def _step(ladder: Ladder, source: str) -> list[str]:
    text = f"From one to the next the loss falls to about {100 * ladder.ratio:.0f} % of what it was."
    if ladder.visible is not None and len(ladder.rungs) > ladder.visible:
        text += (
            f" Steps so small are less than what is known by {source}: of two neighbours the larger may not be better. "
            f"Up to {ladder.visible} sizes can be told apart."
        )
    return wrapped(text)


def curve_facts(offer: Offer) -> dict[str, Any]:
    """Return all of it as facts for JSON."""
    curve = offer.curve
    facts: dict[str, Any] = {
        "model": curve.model,
        "sensitivity": curve.source,
        "points": [_facts(point) for point in curve.points],
        "landmarks": [
            {
                "kind": entry.kind, "label": entry.label, "bytes": entry.bytes, "bpw": entry.bpw, "loss": entry.loss,
                **_kld(entry.prediction), "ours": entry.ours and _facts(entry.ours),
                "same": entry.same and _facts(entry.same),
            }
            for entry in offer.landmarks
        ],
    }  # fmt: skip
    if offer.ladder is not None:
        rungs = [{**_facts(rung.point), "reason": rung.reason} for rung in offer.ladder.rungs]
        facts["ladder"] = {"rungs": rungs, "ratio": offer.ladder.ratio, "visible": offer.ladder.visible}
    return facts


def curve_rows(offer: Offer) -> Iterator[dict[str, Any]]:
    """Yield all of it as rows of `FIELDS`; what does not apply is left out."""
    for point in offer.curve.points:
        yield {"kind": "point", **_facts(point)}
    for rung in offer.ladder.rungs if offer.ladder else ():
        yield {"kind": "ladder", "label": rung.reason, **_facts(rung.point)}
    for entry in offer.landmarks:
        row = {"kind": entry.kind, "label": entry.label, "bytes": entry.bytes, "bpw": entry.bpw, "loss": entry.loss}
        ours, same = entry.ours, entry.same
        yield {
            **row, **_kld(entry.prediction), "ours_loss": ours and ours.loss,
            "ours_kld": ours and ours.prediction and ours.prediction.kld, "same_bytes": same and same.bytes,
        }  # fmt: skip


def _facts(point: CurvePoint) -> dict[str, Any]:
    return {
        "bytes": point.bytes, "bpw": point.bpw, "loss": point.loss, **_kld(point.prediction), "price": point.price,
    }  # fmt: skip


def _kld(prediction: Prediction | None) -> dict[str, float | None]:
    if prediction is None:
        return {"kld": None, "kld_low": None, "kld_high": None}
    return {"kld": prediction.kld, "kld_low": prediction.low, "kld_high": prediction.high}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _divergence(prediction: Prediction | None) -> str:
    return "" if prediction is None else f"{prediction.kld:.3g}"


def _change(theirs: float | None, ours: float | None) -> str:
    return f"{100 * (ours / theirs - 1):+.1f} %" if theirs and ours is not None else ""
