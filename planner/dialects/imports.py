"""Formats that another quantizer's file gives a model's tensors, read by the rules of that quantizer's parser."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.dialects.dialect import ImportContext, Imported
from planner.dialects.registry import load_dialect, readable
from planner.errors import RecipeError, UsageError, option
from planner.formats.ggml import IK_VARIABLE, ik_formats, nearest_known

__all__ = ["are_rules", "guess_dialect", "known_formats", "read_choices"]


def guess_dialect(path: Path, text: str) -> str:
    """Return the dialect of a file, told by its name or else its text. Raises UsageError if neither tells."""
    dialects = [(name, load_dialect(name)) for name in reversed(readable())]
    for name, dialect in dialects:
        if dialect.own_suffix and path.name.lower().endswith(dialect.own_suffix):
            return name
    for name, dialect in dialects:
        if dialect.sniff(text):
            return name
    raise UsageError(
        f"{path} is of no dialect that can be told.", f"Say which with {option('from')}: {', '.join(readable())}."
    )


def read_choices(
    text: str,
    dialect: str,
    names: Sequence[str],
    architecture: str,
    where: str,
    *,
    nearest: bool = False,
    rows: Mapping[str, int] | None = None,
) -> Imported:
    """Return the format that a text gives each of a model's tensors (`names`). With `nearest`, types that only
    ik_llama.cpp has become those of ggml that are nearest in bits per weight and fit the tensor's rows; `rows` are
    their lengths, where known.

    Raises UsageError for an unknown dialect, RecipeError for text that the dialect's parser would reject, and for types
    that neither ggml nor ik_llama.cpp's library, where that is loaded, knows.
    """
    chosen = load_dialect(dialect)
    if chosen.read is None:
        raise UsageError(f"{dialect} can be exported only.", f"Give a file of one of {', '.join(readable())}.")
    imported = chosen.read(text, ImportContext(names, architecture, where))
    known = known_formats(imported.formats, where, nearest=nearest, rows=rows or {})
    return Imported(known.formats, (*known.notes, *imported.notes))


def known_formats(formats: Mapping[str, str], where: str, *, nearest: bool, rows: Mapping[str, int]) -> Imported:
    """Return types by tensor as there are kernels for them: see `read_choices`. Raises RecipeError for types of which
    there are none, unless the nearest are wanted."""
    own = {} if nearest else ik_formats()
    near = {name: nearest_known(kind, rows.get(name)) for name, kind in formats.items() if kind.lower() not in own}
    pairs = Counter((formats[name], other) for name, other in near.items() if other is not None)
    if pairs and not nearest:
        listed = ", ".join(f"{kind} ({other})" for kind, other in list(pairs)[:6])
        raise RecipeError(
            f"{where} has types of ik_llama.cpp or of older ggml, which ggml does not have: {listed}.",
            f"With {option('nearest')} each becomes the type of ggml that is nearest in bits per weight (in brackets). "
            f"With {IK_VARIABLE} set to ik_llama.cpp's libggml, its types can be planned with.",
        )
    notes = [
        f"{count} {'tensor gets' if count == 1 else 'tensors get'} {other} for {kind}, which ggml does not have."
        for (kind, other), count in pairs.items()
    ]
    return Imported({name: near.get(name) or kind for name, kind in formats.items()}, tuple(notes))


def are_rules(text: str) -> bool:
    """Return whether an argument holds rules rather than the name of a missing file: tensor names have no slash, and
    rules name a type of ggml or ik_llama.cpp."""
    from planner.formats.ggml import formats

    types = {name.lower() for name in formats()}
    parts = [part.strip().partition("=") for part in re.split(r"[,\n]", text)]
    named = [kind.strip() for _, separator, kind in parts if separator]
    return "/" not in text and any(kind.lower() in types or nearest_known(kind) is not None for kind in named)
