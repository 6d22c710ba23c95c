"""Choices of formats out of other people's files: which format each of a model's tensors gets.

Every dialect is read by the rules of its own parser; see the modules of the dialects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from planner.dialects.auto_round import read_auto_round
from planner.dialects.dialect import Found, Rule, first_match
from planner.dialects.evopress import read_evopress
from planner.dialects.ik_llama import read_ik_llama
from planner.dialects.llama_quantize import read_llama_quantize
from planner.dialects.mlx_lm import read_mlx_lm
from planner.dialects.shell import is_script, tensor_type_words
from planner.dialects.table import is_table, read_table
from planner.dialects.tool_suite import read_tool_suite
from planner.errors import RecipeError, UsageError, option
from planner.formats.ggml import nearest_known
from planner.names.transformers import bare

__all__ = ["IMPORTS", "Found", "are_rules", "guess_dialect", "known_formats", "read_choices"]

_PATTERNS: Mapping[str, Callable[[str, str], list[Rule]]] = {
    "llama-quantize": read_llama_quantize,
    "ik_llama": read_ik_llama,
    "gguf-tool-suite": read_tool_suite,
}
_TABLES: Mapping[str, Callable[[str, str], Found]] = {"evopress": read_evopress, "csv": read_table}
_MODULES: Mapping[str, Callable[[str, Sequence[str], str, str], Found]] = {
    "mlx-lm": read_mlx_lm, "auto-round": read_auto_round,
}  # fmt: skip
IMPORTS = (*_PATTERNS, *_TABLES, *_MODULES)
"""Dialects that can be read; GGUF files, states of --target-bpw and tables of KL divergences are told by content."""

_OF_TOOL_SUITE = re.compile(r"(?im)^\s*## (quant mix|recipe of planner)|GGUF Tool Suite")
_SPACED = re.compile(r"\S+\s*=\s*\w+\s*(,|#|$)")
# src/llama-quant.cpp; the other order came with pull request 14572 and went with 19770
_ORDER = {
    "llama-quantize": " llama-quantize takes the first rule that finds a tensor; from July 2025 to early 2026 it took "
    "the last."
}
_MOST_RULES = 20_000  # several for each tensor of the largest models


def guess_dialect(path: Path, text: str) -> str:
    """The dialect of a file by its name and beginning. Raises UsageError where that does not say."""
    by_suffix = {".recipe": "gguf-tool-suite", ".csv": "csv"}.get(path.suffix.lower())
    if by_suffix:
        return by_suffix
    if is_table(text):
        return "csv"
    begin = text.lstrip()[:4000]
    if begin.startswith("{"):
        return "mlx-lm" if re.search(r'"quantization(_config)?"\s*:\s*\{', text) else "auto-round"
    if re.search(r"(?m)^\S.*: *[\d.]+ *\([\d.]+-\w+\.pth\)$", begin):
        return "evopress"
    if is_script(text):
        return "llama-quantize" if tensor_type_words(text) and "--custom-q" not in text else "ik_llama"
    lines = [line.strip() for line in begin.splitlines() if line.strip()]
    if any(line.startswith("#") for line in lines):
        return "gguf-tool-suite" if _OF_TOOL_SUITE.search(begin) else "ik_llama"
    if lines and all("=" in word for word in lines[0].split()):
        return "ik_llama" if re.search(r"=\w+\s*(,|#)", begin) else "llama-quantize"
    if lines and _SPACED.match(lines[0]):
        return "ik_llama"
    raise UsageError(
        f"{path} is of no dialect that can be told.", f"Say which with {option('from')}: {', '.join(IMPORTS)}."
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
) -> Found:
    """Which of a model's tensors (`names`) get which format. With `nearest`, types that only ik_llama.cpp has become
    those of ggml that are nearest in bits per weight and fit the tensor's rows; `rows` are their lengths, where known.

    Raises RecipeError for text that the dialect's parser would not read, and for types that ggml does not know.
    """
    if dialect in _PATTERNS:
        if (count := text.count("=")) > _MOST_RULES:
            raise RecipeError(f"{where} has {count:,} rules, more than any model needs.", "Merge them into patterns.")
        rules = _PATTERNS[dialect](text, where)
        if not rules:
            raise RecipeError(f"{where} holds no rules.", "Give a file with PATTERN=TYPE in it.")
        found = first_match(rules, names, _ORDER.get(dialect, ""))
        if not found.formats:
            raise RecipeError(
                f"No rule of {where} finds a tensor of the model: the first is {rules[0].regex.pattern[:80]!r}.",
                f"Give the model that the rules are for, or the right {option('from')}.",
            )
    elif dialect in _TABLES:
        found = _TABLES[dialect](text, where)
        own = set(names)
        named = {
            name if name in own or bare(name) not in own else bare(name): kind for name, kind in found.formats.items()
        }
        found = Found(named, found.notes)
    else:
        found = _MODULES[dialect](text, names, architecture, where)
    known = known_formats(found.formats, where, nearest=nearest, rows=rows or {})
    return Found(known.formats, (*known.notes, *found.notes))


def known_formats(formats: Mapping[str, str], where: str, *, nearest: bool, rows: Mapping[str, int]) -> Found:
    """Types by tensor as ggml has them: see `read_choices`. Raises RecipeError for those of ik_llama.cpp alone, unless
    the nearest are wanted."""
    near = {name: nearest_known(kind, rows.get(name)) for name, kind in formats.items()}
    pairs = Counter((formats[name], found) for name, found in near.items() if found is not None)
    if pairs and not nearest:
        listed = ", ".join(f"{kind} ({found})" for kind, found in list(pairs)[:6])
        raise RecipeError(
            f"{where} has types of ik_llama.cpp or of older ggml, which ggml does not have: {listed}.",
            f"With {option('nearest')} each becomes the type of ggml that is nearest in bits per weight (in brackets).",
        )
    notes = [
        f"{count} {'tensor gets' if count == 1 else 'tensors get'} {found} for {kind}, which ggml does not have."
        for (kind, found), count in pairs.items()
    ]
    return Found({name: near[name] or kind for name, kind in formats.items()}, tuple(notes))


def are_rules(text: str) -> bool:
    """Whether an argument is rules, and not the name of a file that is not there: no tensor has a slash in its name,
    and somewhere a type is named that ggml or ik_llama.cpp has."""
    from planner.formats.ggml import formats

    types = {name.lower() for name in formats()}
    parts = [part.strip().partition("=") for part in re.split(r"[,\n]", text)]
    named = [kind.strip() for _, separator, kind in parts if separator]
    return "/" not in text and any(kind.lower() in types or nearest_known(kind) is not None for kind in named)
