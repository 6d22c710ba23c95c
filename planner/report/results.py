"""The output of `planner evaluate`: tables of 80 columns, of all texts together, of each, of trajectories and tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from planner.llama.evaluate.statistics import Estimate, Shown, Statistics, Table, shown_in
from planner.llama.evaluate.trajectories import LENGTH, Alike
from planner.report.columns import Column, shown, table, tabulate, wrapped
from planner.report.evaluation import Evaluated, OnText, Results, TextRead, measured, memory_notes, short_names
from planner.sizes import format_size

__all__ = ["results_text"]

_RANGES = {(0.0, 0.5): "< 0.5", (0.5, 0.9): "0.5–0.9", (0.9, 0.99): "0.9–0.99", (0.99, 1.0): "> 0.99"}
_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class _Row:
    """A model that was compared: a quantization, or the floor."""

    name: str
    file: Evaluated
    statistics: Statistics


def results_text(results: Results) -> str:
    """Lay out all tables, the original first."""
    files = results.files
    names = short_names([file.name for file in files])
    named = list(zip(names, files, strict=True))
    named[1:1] = [("floor", results.floor)] if results.floor else []
    blocks = []
    if results.texts:
        rows = [_Row(name, file, file.statistics) for name, file in named if file.statistics is not None]
        blocks += [_summary(named), *_compared(rows, results), _read(results), *memory_notes(files)]
    kinds = {kind: None for file in files for kind in file.scores}
    blocks += itertools.chain.from_iterable(_tasks(kind, files, names) for kind in kinds)
    return "\n\n".join(blocks)


def _compared(rows: Sequence[_Row], results: Results) -> Iterator[str]:
    if not rows:
        return
    yield _statistics("file", "change", rows)
    yield _statistics("KLD of a token", "distribution", rows)
    yield _by_confidence(rows)
    if len(results.texts) > 1:
        yield _by_text(rows, results.texts)
    if taken := [(row, row.file.alike) for row in rows if row.file.alike is not None]:
        yield _trajectories(taken)


def _summary(files: Sequence[tuple[str, Evaluated]]) -> str:
    rows = [("file", "size", "bpw", "PPL", "mean KLD")]
    for name, file in files:
        size, bpw = (format_size(file.size.bytes), f"{file.size.bpw:.3f}") if file.size else ("", "")
        kld = _estimate(file.statistics.kld) if file.statistics else ""
        rows.append((name, size, bpw, _perplexity(file.ppl), kld))
    return "\n".join(table(rows, "<>>>>"))


def _statistics(label: str, name: Table, rows: Sequence[_Row]) -> str:
    columns: list[Column[_Row]] = [Column(label, lambda row: row.name, "<")]
    columns += [Column(how.heading, partial(_cell, entry, how)) for entry, how in shown_in(name).items()]
    return "\n".join(tabulate(columns, rows))


def _cell(name: str, how: Shown, row: _Row) -> str:
    value = getattr(row.statistics, name)
    if isinstance(value, int | float):
        return format(how.scale * value, how.format)
    if row.file.again:
        return f"{how.scale * value.value:.4g}"
    return measured(how.scale * value.value, how.scale * value.error)


def _by_confidence(rows: Sequence[_Row]) -> str:
    """Lay out divergences by the probability of the original's most likely token."""
    first = rows[0].statistics
    counts = {(bucket.least, bucket.most): bucket.tokens for bucket in first.kld_by_confidence}
    lines = [("KLD by the original's top p", *_RANGES.values())]
    lines.append(("share of tokens", *(f"{100 * counts.get(edges, 0) / first.tokens:.1f} %" for edges in _RANGES)))
    for row in rows:
        found = {(bucket.least, bucket.most): bucket.kld for bucket in row.statistics.kld_by_confidence}
        lines.append((row.name, *(f"{found[edges].value:.3g}" if edges in found else _ABSENT for edges in _RANGES)))
    return "\n".join(table(lines, "<>>>>"))


def _by_text(rows: Sequence[_Row], texts: Sequence[TextRead]) -> str:
    """Lay out a group of rows for every text; one row, where only one model was compared."""
    columns: list[tuple[str, Callable[[OnText, Statistics], str]]] = [
        ("mean KLD", lambda _, found: _estimate(found.kld)),
        ("99 %", lambda _, found: f"{found.kld_99:.3g}"),
        ("99.9 %", lambda _, found: f"{found.kld_999:.3g}"),
        ("same top %", lambda _, found: f"{100 * found.same_top.value:.2f}"),
    ]
    if any(text.prompts for text in texts):
        columns.append((f"Div@{LENGTH} %", lambda on, _: f"{100 * on.alike.diverged[0]:.1f}" if on.alike else ""))
    alone = len(rows) == 1
    lines = [(f"{rows[0].name} by text" if alone else "by text", *(heading for heading, _ in columns))]
    for text in texts:
        if not alone:
            lines.append((shown(text.label), *("" for _ in columns)))
        for row in rows:
            found = row.file.texts[text.label]
            assert found.statistics is not None
            name = shown(text.label) if alone else f"  {row.name}"
            lines.append((name, *(cell(found, found.statistics) for _, cell in columns)))
    return "\n".join(table(lines, "<" + ">" * len(columns)))


def _trajectories(rows: Sequence[tuple[_Row, Alike]]) -> str:
    count = len(rows[0][1].tokens)
    lines = [
        (f"greedy, {count:,} prompts", f"Divergence@{LENGTH} %", f"first {LENGTH} the same %", "alike: mean", "median")
    ]
    for row, found in rows:
        share, error = found.diverged
        lines.append((
            row.name, measured(100 * share, 100 * error), f"{100 - 100 * share:.1f}", f"{found.tokens.mean():.1f}",
            f"{np.median(found.tokens):g}",
        ))  # fmt: skip
    return "\n".join(table(lines, "<>>>>"))


def _read(results: Results) -> str:
    """Say what was read, and in which units results are."""
    floor = "\n" + "\n".join(wrapped(_FLOOR)) if results.floor else ""
    if len(results.texts) == 1:
        text = results.texts[0]
        return "\n".join(wrapped(f"{text.predictions:,} predictions in {_as_read(text)}; {_UNITS}")) + floor
    rows = [("text", "predictions", "PPL", "read as")]
    for text in results.texts:
        original = results.files[0].texts[text.label]
        rows.append((shown(text.label), f"{text.predictions:,}", _perplexity(original.ppl), _as_read(text)))
    return "\n".join([*table(rows, "<>><"), "", f"PPL of the original; {_UNITS}{floor}"])


_UNITS = "KLD in nats; ± from blocks"
_FLOOR = "floor: the original against itself, with other threads and batches: what is only numerical noise"


def _as_read(text: TextRead) -> str:
    if text.chat:
        return f"answers in {text.windows:,} passages of chat"
    return f"{text.windows:,} windows of {text.context:,} tokens"


def _tasks(kind: str, files: Sequence[Evaluated], names: Sequence[str]) -> Iterator[str]:
    """Lay out scores and, where answers have several spellings, the score of each."""
    base = files[0].scores.get(kind)
    count = next(len(file.scores[kind].right) for file in files if kind in file.scores)
    chance = next(file.scores[kind].chance for file in files if kind in file.scores)
    rows = [(kind, f"score %, {count:,} tasks", f"(score − {chance}) / GB", "flips −", "+")]
    for name, file in zip(names, files, strict=True):
        if (score := file.scores.get(kind)) is None or file.size is None:
            continue
        flips = ("", "")
        if base is not None and score is not base:
            flips = f"{(base.right & ~score.right).sum():,}", f"{(score.right & ~base.right).sum():,}"
        efficiency = f"{score.efficiency(file.size.bytes):.2f}"
        rows.append((name, measured(score.percent, score.error), efficiency, *flips))
    yield "\n".join(table(rows, "<>>>>"))
    spellings = next(file.scores[kind].spellings for file in files if kind in file.scores)
    if spellings:
        spelt = [(f"{kind}, letters spelt", *(f"{name} %" for name in spellings))]
        for name, file in zip(names, files, strict=True):
            if kind in file.scores:
                values = file.scores[kind].spellings.values()
                spelt.append((name, *(f"{100 * right.mean():.2f}" for right in values)))
        yield "\n".join(table(spelt, "<" + ">" * len(spellings)))


def _perplexity(ppl: Estimate | None) -> str:
    """Format with digits beyond its error: most of that is the text's, common to all rows."""
    if ppl is None:
        return ""
    return f"{ppl.value:.4f} ± {ppl.error:.4f}" if math.isfinite(ppl.value) else "inf"


def _estimate(estimate: Estimate) -> str:
    return measured(estimate.value, estimate.error)
