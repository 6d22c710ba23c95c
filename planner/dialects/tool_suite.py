"""The GGUF-Tool-Suite's `.recipe`, by the rules of its readers (quant_downloader.sh, quant_assign.py).

Lines; those that begin with `#` are comments. A line is split at every `=`: a pattern that Bash searches for in a
name (`[[ =~ ]]`, POSIX extended; the first that is found decides) and a type. Every tensor has to be found,
those that are never quantized too. Types are spelt `q4_K`, `iq4_xs`, `f32`.
"""

from __future__ import annotations

import re

from planner.dialects.dialect import Dialect, ExportContext, Exported, beginning, refuse, type_names
from planner.dialects.patterns import compacted, escaped, one_each
from planner.dialects.regex import Regex
from planner.dialects.rules import Rule, reader_of_rules
from planner.dialects.shell import is_script
from planner.errors import RecipeError
from planner.formats.ggml import types_of_dialect
from planner.recipe import Recipe
from planner.text import command

__all__ = ["DIALECT"]

_SURE = re.compile(r"(?im)^\s*## (quant mix|recipe of planner)|GGUF Tool Suite")

_TYPES = types_of_dialect("gguf-tool-suite")


def _lines(recipe: Recipe, *, compact: bool) -> str:
    """Return the file. Raises RecipeError for types and names that it cannot express."""
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


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the file and the command that fetches its tensors. Raises RecipeError."""
    fetch = command("./quant_downloader.sh", context.paths[".recipe"])
    return Exported({".recipe": _lines(recipe, compact=context.compact)}, fetch)


def _parse(text: str, where: str) -> list[Rule]:
    """Return the rules of a `.recipe`, read as quant_downloader.sh does, but with indentation stripped, whose spaces
    Bash would search for. Raises RecipeError."""
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


def _sniff(text: str) -> bool:
    begin = beginning(text)
    commented = any(line.lstrip().startswith("#") for line in begin.splitlines())
    return commented and not is_script(text) and _SURE.search(begin) is not None


DIALECT = Dialect(
    write=_write,
    suffixes=(".recipe",),
    families=("gguf", "ik_llama"),
    read=reader_of_rules(_parse),
    sniff=_sniff,
    own_suffix=".recipe",
)
