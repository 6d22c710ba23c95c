"""A comparison as one page of HTML, which needs nothing but itself: no network, no other file."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.llama.evaluate.results import Comparison
from planner.report.comparison.tables import Line, lines, original_line, ours_note
from planner.report.evaluation import Evaluated, measured, memory_notes
from planner.report.pages import assembled
from planner.sizes import format_size
from planner.text import plain

if TYPE_CHECKING:
    from planner.plan.curve import Curve

__all__ = ["comparison_page"]

_BEYOND = 1.3  # as far as the line goes beyond the smallest and the largest file
_LEGEND = (
    '<li><svg viewBox="-9 -9 18 18" aria-hidden="true"><path class="ours" d="M-9 4L9-4"/></svg> '
    "planner's best of every size, predicted by passes of the model on their own text</li>"
)
_HEADINGS = ("#", "file", "size", "bpw", "mean KLD", "99 %", "99.9 %", "same top %", "ln PPL ratio", "PPL", "frontier")


def comparison_page(comparison: Comparison, curve: Curve | None = None) -> str:
    """Return the page; a `curve` lies beneath the files in its chart. Names come from whoever named the files: they are
    escaped, and the page's policy lets nothing run but its own script."""
    every = lines(comparison, curve)
    title = f"{Path(comparison.original.name).name.removesuffix('.gguf')}, quantized"
    return assembled(
        __package__, ["chart.js"], json.dumps(_data(every, curve), allow_nan=False),
        title=_safe(title),
        summary=_safe(" ".join(original_line(comparison).split())),
        legend=_LEGEND if curve else "",
        table=_table(every, predicted=curve is not None),
        notes=_safe(_notes(every, curve)),
    )  # fmt: skip


def _safe(text: str) -> str:
    return html.escape(plain(text))


def _data(every: Sequence[Line], curve: Curve | None) -> dict[str, Any]:
    """Return what the script draws."""
    points = [
        {
            "place": line.place, "name": plain(line.name), "bytes": line.result.bytes, "bpw": line.result.bpw,
            "kld": _finite(line.result.statistics.kld.value), "error": _finite(line.result.statistics.kld.error) or 0,
            "stands": line.standing.kind, "shown": _kld(line), "more": [
                f"99 %: {line.result.statistics.kld_99:.3g}; 99.9 %: {line.result.statistics.kld_999:.3g}",
                f"Same top {_top(line)} %",
                f"On the frontier: {line.stands}",
                *(["Evaluated in memory"] if line.result.in_memory else []),
                *([f"Ours of that size: {line.ours.kld:.3g}, predicted"] if line.ours else []),
            ],
        }
        for line in every
    ]  # fmt: skip
    return {"points": points, "ours": _ours(every, curve)}


def _ours(every: Sequence[Line], curve: Curve | None) -> list[tuple[int, float, float, float]]:
    """Return bytes, divergence, and its interval, of points of the curve that are about as large as the files."""
    if curve is None or not every:
        return []
    low, high = every[0].result.bytes / _BEYOND, every[-1].result.bytes * _BEYOND
    known = [(point.bytes, point.prediction) for point in curve.points if low <= point.bytes <= high]
    return [(size, one.kld, one.low, one.high) for size, one in known if one is not None]


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _number(value: float) -> str:
    """Spell a number as JavaScript reads it."""
    return repr(value).replace("inf", "Infinity")


def _kld(line: Line) -> str:
    return measured(line.result.statistics.kld.value, line.result.statistics.kld.error)


def _top(line: Line) -> str:
    return measured(100 * line.result.statistics.same_top.value, 100 * line.result.statistics.same_top.error)


def _table(every: Sequence[Line], *, predicted: bool) -> str:
    headings = (*_HEADINGS, "ours, predicted") if predicted else _HEADINGS
    head = "".join(f'<th scope="col"{_left(number)}>{_safe(heading)}</th>' for number, heading in enumerate(headings))
    rows = "\n".join(_row(line, predicted=predicted) for line in every)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _left(column: int) -> str:
    return ' class="left"' if column == _HEADINGS.index("file") else ""


def _row(line: Line, *, predicted: bool) -> str:
    result, found = line.result, line.result.statistics
    memory = " <small>in memory</small>" if result.in_memory else ""
    cells = [
        (str(line.place), line.place),
        (format_size(result.bytes), result.bytes),
        (f"{result.bpw:.3f}", result.bpw),
        (_kld(line), found.kld.value),
        (f"{found.kld_99:.3g}", found.kld_99),
        (f"{found.kld_999:.3g}", found.kld_999),
        (_top(line), found.same_top.value),
        (measured(found.ln_ppl_ratio.value, found.ln_ppl_ratio.error), found.ln_ppl_ratio.value),
        (f"{found.ppl.value:.4f}", found.ppl.value),
    ]
    first, *rest = (f'<td data-value="{_number(value)}">{_safe(text)}</td>' for text, value in cells)
    name = f'<th scope="row">{_safe(line.name)}{memory}</th>'
    order = ("frontier", "tie", "beaten").index(line.standing.kind)
    stands = f'<td class="stands" data-value="{order}">{_safe(line.stands)}</td>'
    ours, shown = (line.ours.kld, f"{line.ours.kld:.3g}") if line.ours else (math.inf, "")
    rest += [stands, *([f'<td data-value="{_number(ours)}">{shown}</td>'] if predicted else [])]
    return f'<tr data-place="{line.place}" class="{line.standing.kind}-row">{first}{name}{"".join(rest)}</tr>'


def _notes(every: Sequence[Line], curve: Curve | None) -> str:
    said = [
        "Mean KLD is the Kullback-Leibler divergence of a file's predictions from the original's, in nats a token, "
        "with its standard error; 99 % and 99.9 % that of all but one token in a hundred, or a thousand, at the most; "
        "same top how often both find the same token most likely; ln PPL ratio the logarithm of the perplexity over "
        "the original's. "
        "Files are told apart by paired differences of at least three standard errors."
    ]
    evaluated = [
        Evaluated(None, one.name, in_memory=one.result.in_memory, exact_activations=one.result.exact_activations)
        for one in every
    ]
    said += [] if curve is None else [ours_note(curve)]
    return " ".join([*said, *(" ".join(note.split()) for note in memory_notes(evaluated))])
