"""Choices of formats out of other people's files: which format each of a model's tensors gets.

Every dialect is read by the rules of its own parser; see the modules of the dialects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import RecipeError, UsageError
from planner.ggml import nearest_known
from planner.recipes.auto_round import read_auto_round
from planner.recipes.dialect import Rule, first_match
from planner.recipes.evopress import read_evopress
from planner.recipes.ik_llama import read_ik_llama
from planner.recipes.llama_quantize import read_llama_quantize
from planner.recipes.mlx_lm import read_mlx_lm
from planner.recipes.table import read_table
from planner.recipes.tool_suite import read_tool_suite

__all__ = ["IMPORTS", "Found", "guess_dialect", "known_formats", "read_choices", "read_text"]

_LARGEST_FILE = 1 << 26  # bytes: rules for ten thousand tensors take one
_PATTERNS: Mapping[str, Callable[[str, str], list[Rule]]] = {
    "llama-quantize": read_llama_quantize,
    "ik_llama": read_ik_llama,
    "gguf-tool-suite": read_tool_suite,
}
_TABLES: Mapping[str, Callable[[str, str], dict[str, str]]] = {"evopress": read_evopress, "csv": read_table}
_MODULES: Mapping[str, Callable[[str, Sequence[str], str, str], dict[str, str]]] = {
    "mlx-lm": read_mlx_lm, "auto-round": read_auto_round,
}  # fmt: skip
IMPORTS = (*_PATTERNS, *_TABLES, *_MODULES)
"""Dialects that can be read; GGUF files, states of --target-bpw and tables of KL divergences are told by content."""


@dataclass(frozen=True)
class Found:
    """Formats by tensor; `notes` say what was only nearly so."""

    formats: Mapping[str, str]
    notes: tuple[str, ...] = ()


def guess_dialect(path: Path, text: str) -> str:
    """The dialect of a file by its name and beginning. Raises UsageError where that does not say."""
    by_suffix = {".recipe": "gguf-tool-suite", ".csv": "csv"}.get(path.suffix)
    if by_suffix:
        return by_suffix
    begin = text.lstrip()[:4000]
    if begin.startswith("{"):
        return "mlx-lm" if re.search(r'"quantization(_config)?"\s*:\s*\{', text) else "auto-round"
    if re.search(r"(?m)^\S.*: *[\d.]+ *\([\d.]+-\w+\.pth\)$", begin):
        return "evopress"
    lines = [line for line in begin.splitlines() if line.strip()]
    if lines and any(line.startswith("#") for line in lines):
        return "gguf-tool-suite"
    if lines and all("=" in word for word in lines[0].split()):
        return "ik_llama" if re.search(r"=[a-zA-Z0-9_]+,", lines[0]) else "llama-quantize"
    raise UsageError(f"{path} is of no dialect that can be told.", f"Say which with --from: {', '.join(IMPORTS)}.")


def read_choices(
    text: str,
    dialect: str,
    names: Sequence[str],
    architecture: str,
    where: str,
    *,
    nearest: bool = False,
    rows: Mapping[str, int] | None = None,
) -> Found:
    """Which of a model's tensors (`names`) get which format. With `nearest`, types that only ik_llama.cpp has become
    those of ggml that are nearest in bits per weight and fit the tensor's rows; `rows` are their lengths, where known.

    Raises RecipeError for text that the dialect's parser would not read, and for types that ggml does not know.
    """
    if dialect in _PATTERNS:
        rules = _PATTERNS[dialect](text, where)
        if not rules:
            raise RecipeError(f"{where} holds no rules.", "Give a file with PATTERN=TYPE in it.")
        formats = first_match(rules, names)
        if not formats:
            raise RecipeError(
                f"No rule of {where} finds a tensor of the model: the first is {rules[0].regex.pattern[:80]!r}.",
                "Give the model that the rules are for, or the right --from.",
            )
    elif dialect in _TABLES:
        formats = _TABLES[dialect](text, where)
    else:
        formats = _MODULES[dialect](text, names, architecture, where)
    return known_formats(formats, where, nearest=nearest, rows=rows or {})


def known_formats(formats: Mapping[str, str], where: str, *, nearest: bool, rows: Mapping[str, int]) -> Found:
    """Types by tensor as ggml has them: see `read_choices`. Raises RecipeError for those of ik_llama.cpp alone, unless
    the nearest are wanted."""
    near = {name: nearest_known(kind, rows.get(name)) for name, kind in formats.items()}
    pairs = Counter((formats[name], found) for name, found in near.items() if found is not None)
    if pairs and not nearest:
        listed = ", ".join(f"{kind} ({found})" for kind, found in list(pairs)[:6])
        raise RecipeError(
            f"{where} has types of ik_llama.cpp or of older ggml, which ggml does not have: {listed}.",
            "With --nearest each becomes the type of ggml that is nearest in bits per weight (in brackets).",
        )
    notes = [
        f"{count} tensors get {found} for {kind}, which ggml does not have." for (kind, found), count in pairs.items()
    ]
    return Found({name: near[name] or kind for name, kind in formats.items()}, tuple(notes))


def read_text(path: Path) -> str:
    """A text file, of any size that such files have. Raises RecipeError."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise RecipeError(f"{path} is too large for a list of types.", "Give a GGUF, or a text of rules.")
        return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
