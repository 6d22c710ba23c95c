"""Compare two mixes of one model, by role and as a map of layers and roles. Plain text, 80 columns."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from planner.formats.registry import all_formats
from planner.names.gguf import role_of
from planner.report.columns import WIDTH, beside, table
from planner.sensitivity import likely_ratio
from planner.text import plain

__all__ = ["GLYPHS", "PLAIN_GLYPHS", "Cell", "Side", "difference"]

_LEAST = 8  # of it for a name, whatever the numbers take
_COLUMNS = 60  # layers side by side
_TYPES = 25
_NAMED = 5  # tensors named one by one
_MUCH = 1.0  # bits per weight
GLYPHS = "▲△≠▽▼·"
PLAIN_GLYPHS = "^+=-v."
_MEANING = (f"up by {_MUCH:g}+", "up", "as many", "down", f"down by {_MUCH:g}+", "same type")


@dataclass(frozen=True, slots=True)
class Cell:
    """One tensor of a mix; `loss` None where it is not known."""

    format: str
    bytes: int
    shape: tuple[int, ...]
    loss: float | None


@dataclass(frozen=True)
class Side:
    """One mix: what it is called, the bytes of its file, and its tensors."""

    label: str
    size: int
    tensors: Mapping[str, Cell]

    @property
    def bpw(self) -> float:
        """Bits of tensor data per element."""
        elements = sum(prod(cell.shape) for cell in self.tensors.values())
        return 8 * sum(cell.bytes for cell in self.tensors.values()) / elements if elements else 0.0

    @property
    def loss(self) -> float | None:
        """Sum over the tensors, None where one is not known."""
        losses = [cell.loss for cell in self.tensors.values()]
        return None if None in losses else sum(loss or 0.0 for loss in losses)


def difference(a: Side, b: Side, *, source: str | None = None, nats: bool = False, glyphs: str = GLYPHS) -> str:
    """Describe what changes from A to B. `source` names the source of the sensitivities; None leaves losses out. `nats`
    is as in `likely_ratio`."""
    common = [name for name in a.tensors if name in b.tensors]
    other = [name for name in common if a.tensors[name].format != b.tensors[name].format]
    parts = [_head(a, b, source, nats=nats), _counts(a, b, common, other)]
    if other:
        parts.append(_roles(a, b, other, with_loss=source is not None))
        parts += _map(a, b, common, glyphs)
        if source is not None:
            parts += _reasons(a, b, other)
    return "\n\n".join(part for part in parts if part)


def _head(a: Side, b: Side, source: str | None, *, nats: bool) -> str:
    width = max(len(f"{side.size:,}") for side in (a, b))
    lines = []
    for letter, side in (("A", a), ("B", b)):
        loss = "" if source is None else f"  loss {_number(side.loss)}"
        numbers = f"{side.size:>{width},} bytes  {side.bpw:.4f} bpw{loss}"
        room = max(WIDTH - len(numbers) - 5, _LEAST)
        lines.append(f"{letter}  {_cut(side.label, room):<{room}}  {numbers}")
    change = f"B is {_larger(a.size, b.size)}"
    if source is not None:
        known = a.loss is not None and b.loss is not None
        likely = _likely(a.loss, b.loss, source, nats=nats)
        more = f", and its loss {_change(a.loss or 0, b.loss or 0)} (by {source}{likely})"
        change += more if known else "; losses are not all known"
    indent = " " * 3
    return "\n".join([*lines, *textwrap.wrap(f"{change}.", WIDTH, initial_indent=indent, subsequent_indent=indent)])


def _counts(a: Side, b: Side, common: Sequence[str], other: Sequence[str]) -> str:
    up = sum(_bits(b.tensors[name]) > _bits(a.tensors[name]) for name in other)
    down = sum(_bits(b.tensors[name]) < _bits(a.tensors[name]) for name in other)
    if other:
        text = f"{len(other)} of {len(common)} tensors have another type: {up} more bits in B, {down} fewer."
    else:
        text = f"All {len(common)} tensors have the same types."
    for letter, one, two in (("A", a, b), ("B", b, a)):
        only = [plain(name) for name in one.tensors if name not in two.tensors]
        if only:
            text += f" Only in {letter}: {', '.join(only[:3])}{f' and {len(only) - 3} more' if len(only) > 3 else ''}."
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _roles(a: Side, b: Side, other: Sequence[str], *, with_loss: bool) -> str:
    roles: dict[str, list[str]] = {}
    for name in other:
        roles.setdefault(role_of(name)[1], []).append(name)
    width = min(16, max(len("changed"), *(len(plain(role)) for role in roles)))
    types = min(_TYPES, (WIDTH - width - (21 if with_loss else 12)) // 2)
    heads = ["changed", "A", "B", "bytes", *(["loss"] if with_loss else [])]
    widths, align = [width + 1, types, types, 8, 8][: len(heads)], "<<<>>"[: len(heads)]
    lines = beside([[head] for head in heads], widths, align, " ")
    for role, names in sorted(roles.items(), key=lambda item: -_gain(a, b, item[1])):
        left, right = (_filled([side.tensors[name] for name in names], types) for side in (a, b))
        before, after = (sum(side.tensors[name].bytes for name in names) for side in (a, b))
        changes = [[_share(before, after)], *([[_loss_change(a, b, names)]] if with_loss else [])]
        lines += beside([[_cut(plain(role), width)], left, right, *changes], widths, align, " ")
    return "\n".join(lines)


def _gain(a: Side, b: Side, names: Sequence[str]) -> int:
    return sum(abs(b.tensors[name].bytes - a.tensors[name].bytes) for name in names)


def _filled(cells: Sequence[Cell], width: int) -> list[str]:
    counts = Counter(cell.format for cell in cells)
    words = [f"{fmt}*{counts[fmt]}" for fmt in sorted(counts, key=lambda fmt: (_of(fmt), fmt))]
    return textwrap.wrap(" ".join(words), width)


def _map(a: Side, b: Side, common: Sequence[str], glyphs: str) -> list[str]:
    grid: dict[str, dict[int, str]] = {}
    for name in common:
        block, role = role_of(name)
        if block is not None and sum(size > 1 for size in a.tensors[name].shape) > 1:
            grid.setdefault(role, {})[block] = _glyph(a.tensors[name], b.tensors[name], glyphs)
    grid = {role: row for role, row in grid.items() if set(row.values()) - {glyphs[-1]}}
    if not grid:
        return []
    width = min(16, max(5, *(len(plain(role)) for role in grid)))
    last = max(block for row in grid.values() for block in row)
    parts = []
    for start in range(0, min(last + 1, 100 * _COLUMNS), _COLUMNS):
        stop = min(start + _COLUMNS, last + 1)
        scale = "".join(f"{block:<10}" for block in range(start, stop, 10))
        lines = [f"{'layer':<{width}}  {scale[: max(stop - start, len(str(start)))]}".rstrip()]
        for role, row in sorted(grid.items()):
            cells = "".join(row.get(block, " ") for block in range(start, stop))
            lines.append(f"{_cut(plain(role), width):<{width}}  {cells}".rstrip())
        parts.append("\n".join(lines))
    used = {glyph for row in grid.values() for glyph in row.values()}
    legend = "  ".join(f"{glyph} {word}" for glyph, word in zip(glyphs, _MEANING, strict=True) if glyph in used)
    return [*parts, f"bits in B:  {legend}"]


def _glyph(a: Cell, b: Cell, glyphs: str) -> str:
    if a.format == b.format:
        return glyphs[5]
    change = _bits(b) - _bits(a)
    if change == 0:
        return glyphs[2]
    if change > 0:
        return glyphs[0] if change >= _MUCH else glyphs[1]
    return glyphs[4] if change <= -_MUCH else glyphs[3]


def _reasons(a: Side, b: Side, other: Sequence[str]) -> list[str]:
    """List the tensors that change the loss most."""
    changes = {
        name: (b.tensors[name].loss or 0.0) - (a.tensors[name].loss or 0.0)
        for name in other
        if a.tensors[name].loss is not None and b.tensors[name].loss is not None
    }
    most = sorted(changes, key=lambda name: -abs(changes[name]))[:_NAMED]
    if not most:
        return []
    rows = [
        (_cut(plain(name), 36), f"{a.tensors[name].format} → {b.tensors[name].format}", f"{changes[name]:+.3g}")
        for name in most
    ]
    return ["\n".join(["loss changes most in", *table(rows, "<<<")])]


def _loss_change(a: Side, b: Side, names: Sequence[str]) -> str:
    losses = [(a.tensors[name].loss, b.tensors[name].loss) for name in names]
    if any(None in pair for pair in losses):
        return "?"
    total = sum((after or 0.0) - (before or 0.0) for before, after in losses)
    return f"{total:+.2g}"


def _of(fmt: str) -> float:
    entry = all_formats().get(fmt)
    return entry.bpw if entry else 0.0


def _bits(cell: Cell) -> float:
    return 8 * cell.bytes / prod(cell.shape) if cell.shape else _of(cell.format)


def _share(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else "?"


def _larger(before: int, after: int) -> str:
    if before == after:
        return "as large as A"
    return f"{abs(after - before):,} bytes {'larger' if after > before else 'smaller'} ({_share(before, after)})"


def _change(before: float, after: float) -> str:
    if before == after or not before:
        return "the same" if before == after else "higher"
    return f"{abs(100 * (after / before - 1)):.1f} % {'higher' if after > before else 'lower'}"


def _likely(before: float | None, after: float | None, source: str, *, nats: bool) -> str:
    likely = likely_ratio(source, after / before, nats=nats) if before and after and before != after else None
    if likely is None:
        return ""
    low, high = (f"{100 * (ratio - 1):+.0f} %" for ratio in likely)
    return f"; two times in three found to be {low} to {high}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _cut(text: str, room: int) -> str:
    """Cut a long text at its start: paths and names differ at the end."""
    text = plain(text)
    return text if len(text) <= room else f"…{text[len(text) - room + 1 :]}"
