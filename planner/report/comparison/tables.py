"""A comparison in plain text, 80 columns wide, as CSV, and as facts for JSON. The smallest file comes first."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.llama.evaluate.frontier import Standing, standings
from planner.llama.evaluate.results import Compared, Comparison
from planner.llama.evaluate.statistics import Estimate
from planner.report.columns import Column, tabulate, wrapped
from planner.report.evaluation import Evaluated, measured, memory_notes, short_names, statistics_facts
from planner.sizes import format_size

if TYPE_CHECKING:  # which others need not wait for
    from planner.plan.curve import Curve, CurvePoint
    from planner.sensitivity import Prediction

__all__ = ["Line", "comparison_csv", "comparison_facts", "comparison_text", "lines", "original_line", "ours_note"]


@dataclass(frozen=True, slots=True)
class Line:
    """A result with its place, what it is called where there is little room, and how it stands: `by` is the place of
    the other one. `ours` is the divergence that is predicted of our best file of its size, None where it is not
    known."""

    place: int
    name: str
    result: Compared
    standing: Standing
    by: int | None
    ours: Prediction | None = None

    @property
    def stands(self) -> str:
        """How it stands, in words."""
        words = {"frontier": "yes", "tie": f"tie with {self.by}", "beaten": f"beaten by {self.by}"}
        return words[self.standing.kind]


_COLUMNS = (
    Column[Line]("", lambda line: f"{line.place} {line.name}", "<"),
    Column[Line]("size", lambda line: format_size(line.result.bytes)),
    Column[Line]("bpw", lambda line: f"{line.result.bpw:.3f}"),
    Column[Line]("mean KLD", lambda line: _estimate(line.result.statistics.kld)),
    Column[Line]("frontier", lambda line: line.stands, "<"),
)
_MORE = (
    Column[Line]("", lambda line: str(line.place)),
    Column[Line]("PPL", lambda line: f"{line.result.statistics.ppl.value:.4f}"),  # its error is the text's
    Column[Line]("ln PPL ratio", lambda line: _estimate(line.result.statistics.ln_ppl_ratio)),
    Column[Line]("same top %", lambda line: _estimate(line.result.statistics.same_top, 100)),
    Column[Line]("median", lambda line: f"{line.result.statistics.kld_median:.3g}"),
    Column[Line]("99 %", lambda line: f"{line.result.statistics.kld_99:.3g}"),
    Column[Line]("99.9 %", lambda line: f"{line.result.statistics.kld_999:.3g}"),
)
_OURS = (
    Column[Line]("", lambda line: f"{line.place} {line.name}", "<"),
    Column[Line]("size", lambda line: format_size(line.result.bytes)),
    Column[Line]("mean KLD", lambda line: f"{line.result.statistics.kld.value:.3g}"),
    Column[Line]("ours, predicted", lambda line: f"{line.ours.kld:.3g}" if line.ours else ""),
    Column[Line]("between", lambda line: f"{line.ours.low:.3g} and {line.ours.high:.3g}" if line.ours else "", "<"),
)
_NAMES_IN_CSV = (
    "place", "name", "bytes", "bpw", "in_memory", "ppl", "ppl_error", "ln_ppl_ratio", "ln_ppl_ratio_error", "kld",
    "kld_error", "kld_median", "kld_90", "kld_95", "kld_99", "kld_999", "kld_max", "same_top", "same_top_error",
    "standing", "by", "ours_kld", "ours_kld_low", "ours_kld_high",
)  # fmt: skip


def lines(comparison: Comparison, curve: Curve | None = None) -> list[Line]:
    """Return the results by size, with their places from 1 on; with our best of their sizes, if a curve tells."""
    results = comparison.by_size()
    stand = standings(results)
    places = {result.name: place for place, result in enumerate(results, 1)}
    names = short_names([result.name for result in results])
    return [
        Line(
            places[result.name],
            name,
            result,
            stand[result.name],
            places.get(stand[result.name].by or ""),
            _predicted(None if curve is None else curve.within(result.bytes)),
        )
        for name, result in zip(names, results, strict=True)
    ]


def _predicted(point: CurvePoint | None) -> Prediction | None:
    return None if point is None else point.prediction


def comparison_text(comparison: Comparison, curve: Curve | None = None) -> str:
    """Lay out a comparison, and what is predicted of our best files where there is a `curve`."""
    every = lines(comparison, curve)
    if not every:
        return original_line(comparison)
    blocks = [
        "\n".join(tabulate(_COLUMNS, every)), "\n".join(tabulate(_MORE, every)), *_beneath(every, curve),
        original_line(comparison),
        *memory_notes([_evaluated(line.result) for line in every]),
    ]  # fmt: skip
    return "\n\n".join(blocks)


def _beneath(every: Sequence[Line], curve: Curve | None) -> Iterator[str]:
    if curve is not None:
        yield "\n".join([*tabulate(_OURS, every), *wrapped(ours_note(curve))])


def ours_note(curve: Curve) -> str:
    """Say what is predicted, and how well."""
    return (
        "Ours is planner's best file of that size. Its KLD is predicted, not evaluated: by passes of the model "
        f"({curve.source}) on their own text, where two times in three it is in between. On this one it may differ."
    )


def original_line(comparison: Comparison) -> str:
    """Say what all are compared with, and on how much."""
    original = comparison.original
    size = "" if original.bytes is None else f", {format_size(original.bytes)}"
    tokens = next((result.statistics.tokens for result in comparison.results.values()), 0)
    predictions = f"{tokens:,} predictions in " if tokens else ""
    said = (
        f"Original: {Path(original.name).name}{size}, PPL {_perplexity(original.ppl)}. {predictions}"
        f"{comparison.windows:,} windows of {comparison.context:,} tokens; KLD in nats."
    )
    return "\n".join(wrapped(said))


def comparison_csv(comparison: Comparison, curve: Curve | None = None) -> str:
    """Return a table with a row for every result, to full precision; infinite values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_NAMES_IN_CSV)
    for line in lines(comparison, curve):
        facts = {"place": line.place, **_row(line)}
        writer.writerow(["" if facts[name] is None else facts[name] for name in _NAMES_IN_CSV])
    return out.getvalue()


def _row(line: Line) -> dict[str, Any]:
    """Return the facts of a line, estimates as two of them."""
    found = statistics_facts(line.result.statistics)
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat |= {name: value["value"], f"{name}_error": value["error"]}
        else:
            flat[name] = value
    result = line.result
    return {
        "name": result.name, "bytes": result.bytes, "bpw": result.bpw, "in_memory": result.in_memory,
        "standing": line.standing.kind, "by": line.standing.by, **flat, **_predicted_facts(line.ours, "ours_"),
    }  # fmt: skip


def _predicted_facts(ours: Prediction | None, prefix: str = "") -> dict[str, float | None]:
    """Return a prediction as facts."""
    values = (None, None, None) if ours is None else (ours.kld, ours.low, ours.high)
    return dict(zip((f"{prefix}kld", f"{prefix}kld_low", f"{prefix}kld_high"), values, strict=True))


def comparison_facts(comparison: Comparison, curve: Curve | None = None) -> dict[str, Any]:
    """Return a comparison for JSON, to full precision; infinite values are None. With a `curve`, files have what is
    predicted of `ours` of their size."""
    original = comparison.original
    return {
        "context": comparison.context,
        "windows": comparison.windows,
        "original": {
            "path": original.name, "bytes": original.bytes, "bpw": original.bpw, "ppl": statistics_facts(original.ppl),
        },
        "files": list(_facts(lines(comparison, curve), predicted=curve is not None)),
    }  # fmt: skip


def _facts(every: Sequence[Line], *, predicted: bool) -> Iterator[dict[str, Any]]:
    for line in every:
        result = line.result
        yield {
            "path": result.name, "bytes": result.bytes, "bpw": result.bpw,
            **({"in_memory": True, "exact_activations": result.exact_activations} if result.in_memory else {}),
            "standing": line.standing.kind, "by": line.standing.by, **statistics_facts(result.statistics),
            **({"ours": _predicted_facts(line.ours)} if predicted else {}),
        }  # fmt: skip


def _evaluated(result: Compared) -> Evaluated:
    return Evaluated(None, result.name, in_memory=result.in_memory, exact_activations=result.exact_activations)


def _estimate(estimate: Estimate, scale: int = 1) -> str:
    return measured(scale * estimate.value, scale * estimate.error)


def _perplexity(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ± {estimate.error:.4f}" if math.isfinite(estimate.value) else "inf"
