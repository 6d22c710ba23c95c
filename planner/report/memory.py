"""What is in a card's memory, line by line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.report.columns import WIDTH
from planner.sizes import format_size
from planner.text import command, plain, some

if TYPE_CHECKING:
    from planner.plan.cards import Card
    from planner.plan.plan import Plan

__all__ = ["memory_lines"]

_INDENT = " " * 11
_NAMES, _SIZES = 16, 10  # columns


def memory_lines(plan: Plan) -> list[str]:
    """Lay out the memory of the cards that a context was to fit on; nothing where there are none."""
    used = {limit.name: limit.used for limit in plan.limits}
    return [line for card in plan.cards for line in _lines(card, used[card.name])]


def _lines(card: Card, used: int) -> Iterator[str]:
    beside, context = card.beside, card.context
    options = ["-c", str(context.tokens), "-np", str(context.sequences)]
    options += ["-ub", str(context.batch)] if context.batch != 512 else []
    options += ["-ctk", context.kv[0], "-ctv", context.kv[1]] if context.kv != ("f16", "f16") else []
    yield f"Memory     {plain(card.name)}, as llama.cpp fills it with {command(*options)}"
    ram = f"without {some([plain(name) for name in card.in_ram], 1)}, in RAM" if card.in_ram else ""
    yield _line("weights", used - beside.total, ram)
    yield _line(
        "KV cache", beside.kv, f"{beside.per_token:,} bytes a token{_windows(beside.kv, beside.per_token, card)}"
    )
    if beside.state:
        count = context.sequences
        yield _line("recurrent state", beside.state, f"{count} sequence{'s' if count > 1 else ''}")
    if beside.reserve:
        yield _line(
            "compute buffers", beside.compute, f"estimated, for {min(context.batch, context.tokens):,} tokens at once"
        )
        yield _line("driver, others", beside.reserve, "as llama.cpp's own --fit leaves")
    else:
        yield _line("margin", beside.compute, "as given")
    if beside.mmproj:
        yield _line("mmproj", beside.mmproj, "its tensors")
    yield _line("left", card.capacity - used, "")
    for note in card.notes:
        yield textwrap.fill(plain(note), WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _windows(kv: int, per_token: int, card: Card) -> str:
    windows = kv - per_token * card.context.cells * card.context.sequences
    return f", and windows {format_size(windows)}" if windows else ""


def _line(name: str, size: int, about: str) -> str:
    return f"{_INDENT}{name:<{_NAMES}}{format_size(size):>{_SIZES}}  {about}".rstrip()
