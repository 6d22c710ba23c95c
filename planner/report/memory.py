"""What is in a card's memory, line by line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.report.columns import WIDTH
from planner.sizes import format_size
from planner.text import plain

if TYPE_CHECKING:
    from planner.fit import Beside, Context
    from planner.plan.cards import Card
    from planner.plan.plan import Plan

__all__ = ["memory_lines"]

_INDENT = " " * 11
_NAMES, _SIZES = 16, 10  # columns


def memory_lines(plan: Plan) -> list[str]:
    """Lay out the memory of the cards that a context was to fit on; nothing where there are none."""
    used = {limit.name: limit.used for limit in plan.limits}
    found: list[str] = []
    for card in plan.cards:
        in_ram = sum(choice.bytes for choice in plan.recipe.tensors if choice.name in card.in_ram)
        found += _lines(card, used[card.name] - card.beside.total, in_ram)
    notes = dict.fromkeys(note for card in plan.cards for note in card.notes)
    found += [textwrap.fill(plain(note), WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT) for note in notes]
    return found


def _lines(card: Card, weights: int, in_ram: int) -> Iterator[str]:
    beside, context = card.beside, card.fit.context
    everything = "-ngl 99 " if card.blocks is None else ""
    yield f"Memory     {plain(card.name)} with {everything}{_options(context)}"
    yield _line("weights", weights, f"besides {format_size(in_ram)} of embeddings in RAM" if in_ram else "")
    yield _line("KV cache", beside.kv, _per_token(beside, context))
    if beside.state:
        yield _line("recurrent state", beside.state, f"of {context.sequences}" if context.sequences > 1 else "")
    if card.fit.margin is None:
        batch = min(context.batch, context.tokens)
        yield _line("compute buffers", beside.compute, f"estimated, for {batch:,} tokens at once")
        yield _line("driver, others", beside.reserve, "as llama.cpp's own --fit leaves")
    else:
        yield _line("margin", beside.compute, "as given")
    if beside.mmproj:
        yield _line("mmproj", beside.mmproj, "")


def _options(context: Context) -> str:
    """Return the options of llama.cpp that the figures are for."""
    batch = f" -ub {context.batch}" if context.batch != 512 else ""
    types = f" -ctk {context.kv[0]} -ctv {context.kv[1]}" if context.kv != ("f16", "f16") else ""
    return f"-c {context.tokens} -np {context.sequences}{batch}{types}"


def _per_token(beside: Beside, context: Context) -> str:
    windows = beside.kv - beside.per_token * context.cells * context.sequences
    return f"{beside.per_token:,} bytes a token" + (f", windows {format_size(windows)}" if windows else "")


def _line(name: str, size: int, about: str) -> str:
    return f"{_INDENT}{name:<{_NAMES}}{format_size(size):>{_SIZES}}  {about}".rstrip()
