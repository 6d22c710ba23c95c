"""Plain text for a terminal of 80 columns: untrusted text escaped, labelled lines, and every table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from rich.cells import cell_len, set_cell_size

from planner.names.gguf import parse_name
from planner.text import plain

__all__ = [
    "WIDTH",
    "Column",
    "beside",
    "by_role",
    "counted",
    "labelled",
    "percent",
    "role_name",
    "shape_text",
    "shown",
    "table",
    "tabulate",
    "wrapped",
]

WIDTH = 80
_LABEL = 12
_LEAST = 12  # columns of a column that gives way
_LONGEST = 4096  # characters of a text that are looked at
T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column of a table: its heading, the text of an item's cell, and the side that the cells are aligned to."""

    heading: str
    cell: Callable[[T], str]
    align: Literal["<", ">"] = ">"


def shown(text: str, width: int = WIDTH) -> str:
    """Return a text from a file as one safe line: no character that a terminal would act on, at most `width` columns.

    >>> shown("a\\x1b[31m\\nb"), shown("very long", 6)
    ('a\\\\x1b[31m\\\\nb', 'very…')
    """
    safe = plain(text[:_LONGEST])
    # combining characters are 0 columns wide: bound their number, too
    if len(text) <= _LONGEST and len(safe) <= 4 * width and cell_len(safe) <= width:
        return safe
    return set_cell_size(safe[: 4 * width], width - 1).rstrip() + "…"


def by_role(names: Iterable[str], most: int = 12) -> str:
    """List names of tensors without their block index: `output, attn_q*8`."""
    roles = Counter(map(role_name, names))
    listed = [shown(role, 40) + (f"*{count}" if count > 1 else "") for role, count in roles.items()]
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def role_name(name: str) -> str:
    """Return the name without its block index, finer than a sensitivity's role: towers and biases apart.

    >>> role_name("blk.3.attn_q.weight"), role_name("v.blk.0.attn_q.bias")
    ('attn_q', 'v.attn_q.bias')
    """
    parsed = parse_name(name)
    return (parsed.tower + parsed.rest).removesuffix(".weight")


def counted(counts: Mapping[str, int]) -> str:
    """Format counts as `q4_K*7 q6_K`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return " ".join(shown(name, 16) + (f"*{count}" if len(counts) > 1 else "") for name, count in ordered)


def shape_text(shape: Sequence[int]) -> str:
    """Format a shape as `256×768`, row length first."""
    return "×".join(map(str, shape))


def percent(part: float, whole: float) -> str:
    """Format a share with about three significant digits.

    >>> percent(1, 3), percent(1, 100_000), percent(0, 5), percent(7, 7)
    ('33.3 %', '0.001 %', '0 %', '100 %')
    """
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.001:
        return "<0.001 %"
    return f"{share:.3g} %" if share < 99.95 or part == whole else "99.9 %"


def labelled(label: str, text: str) -> list[str]:
    """Lay out a label and its text, which wraps beside it."""
    return [
        f"{head:<{_LABEL}}{line}".rstrip()
        for head, line in zip(_once(label), wrapped(text, WIDTH - _LABEL), strict=False)
    ]


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Wrap a text to lines of at most `width` columns, at spaces; a longer word is broken anywhere."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
        while cell_len(line) > width:
            head = set_cell_size(line, width)
            if not head.strip() or not line.startswith(head):  # a wide character across the edge
                head = line[: max(1, width // 2)]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line]


def tabulate(columns: Sequence[Column[T]], items: Iterable[T]) -> list[str]:
    """Lay out the headings and a row for every item, by the rules of `table`."""
    rows = [[column.heading for column in columns]]
    rows += [[column.cell(item) for column in columns] for item in items]
    return table(rows, "".join(column.align for column in columns))


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lay out rows of cells; `align` has `<` or `>` for each column. A last `<` wraps, at spaces.

    Where there is no room for it, the first column is cut.
    """
    if align.endswith(">"):
        return table([(*row, "") for row in rows], align + "<")
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(align) - 1)]
    last = min(_LEAST, max(cell_len(row[-1]) for row in rows))
    excess = sum(widths) + 2 * len(widths) + last - WIDTH
    if excess > 0 and widths[0] > _LEAST:
        widths[0] = max(_LEAST, widths[0] - excess)
        rows = [(shown(row[0], widths[0]), *row[1:]) for row in rows]
    widths.append(max(WIDTH - sum(widths) - 2 * len(widths), _LEAST))
    return [
        line
        for row in rows
        for line in beside([*([cell] for cell in row[:-1]), wrapped(row[-1], widths[-1])], widths, align)
    ]


def beside(cells: Sequence[Sequence[str]], widths: Sequence[int], align: str, gap: str = "  ") -> list[str]:
    """Set cells, each a list of lines, beside each other in columns of these widths."""
    lines = []
    for number in range(max(map(len, cells))):
        texts = (cell[number] if number < len(cell) else "" for cell in cells)
        padded = (_padded(text, width, side) for text, width, side in zip(texts, widths, align, strict=True))
        lines.append(gap.join(padded).rstrip())
    return lines


def _padded(text: str, width: int, side: str) -> str:
    space = " " * (width - cell_len(text))
    return text + space if side == "<" else space + text


def _once(label: str) -> Iterable[str]:
    yield label
    while True:
        yield ""
