"""The GGUF-Tool-Suite's `.recipe`, by the rules of its readers (quant_downloader.sh, quant_assign.py).

Lines; those that begin with `#` are comments. A line is split at every `=`: a pattern that Bash searches for in a
name (`[[ =~ ]]`, POSIX extended; the first that is found decides) and a type. Every tensor has to be found,
those that are never quantized too. Types are spelt `q4_K`, `iq4_xs`, `f32`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from planner.dialects.dialect import Exported, Rule, refuse, type_names
from planner.dialects.patterns import compacted, escaped, one_each
from planner.dialects.regex import Regex
from planner.errors import RecipeError
from planner.formats.ggml import TYPES
from planner.recipe import Recipe
from planner.text import command

__all__ = ["export_tool_suite", "read_tool_suite", "recipe_lines"]

_TYPES = frozenset(row.name for row in TYPES.values() if "gguf-tool-suite" in row.dialects)


def recipe_lines(recipe: Recipe, *, compact: bool = False) -> str:
    """The file. Raises RecipeError for types and names that it cannot say."""
    type_names(recipe, _TYPES, "The GGUF-Tool-Suite")
    formats = recipe.formats
    refuse(
        formats, lambda name: name and "=" not in name and all(32 <= ord(character) < 127 for character in name),
        "The GGUF-Tool-Suite", "its lines are split at =, and Bash has no escapes for what is not printable ASCII",
        "Write this model with `planner quantize`.",
    )  # fmt: skip
    rules = (compacted if compact else one_each)(formats, escaped)
    head = [
        f"## Recipe of planner {recipe.planner} for {_comment(recipe.model.name)}",
        f"# {recipe.size:,} bytes, {recipe.bpw:.4f} bpw",
    ]
    return "".join(f"{line}\n" for line in (*head, *(f"{pattern}={fmt}" for pattern, fmt in rules)))


def _comment(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def export_tool_suite(recipe: Recipe, paths: Mapping[str, Path], *, compact: bool, threads: int) -> Exported:
    """The file and the command that fetches its tensors. Raises RecipeError."""
    del threads
    fetch = command("./quant_downloader.sh", paths[".recipe"])
    return Exported({".recipe": recipe_lines(recipe, compact=compact)}, fetch)


def read_tool_suite(text: str, where: str) -> list[Rule]:
    """The rules of a `.recipe`, read as quant_downloader.sh does; indentation, in which Bash would look for spaces, is
    taken off. Raises RecipeError."""
    rules = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        pattern, separator, name = line.partition("=")
        name = name.partition("=")[0].strip()
        if not (separator and pattern and name):
            raise RecipeError(f"{where}: line {number} is {line[:80]!r}, not PATTERN=TYPE.", "Comments begin with #.")
        rules.append(Rule(Regex(pattern, "ere", f"{where}: line {number},"), name))
    return rules
