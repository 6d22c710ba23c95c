"""llama-quantize's `--tensor-type-file`, by the rules of its parser (tools/quantize/quantize.cpp, src/llama-quant.cpp).

Words separated by white space, no comments. A word is `PATTERN=TYPE`, split at the first `=`; the pattern is lowercased
and searched for (std::regex, ECMAScript) in each tensor's name; the first that is found decides. What the reading would
take apart or change (white space, `=`, capitals) is written by number: `\\x20`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from planner.errors import RecipeError
from planner.recipes.dialect import Exported, Rule, changing, refuse
from planner.recipes.patterns import compacted, escaped_ecmascript, one_each
from planner.recipes.recipe import Recipe
from planner.recipes.regex import Regex
from planner.recipes.shell import tensor_type_words
from planner.text import command

__all__ = ["command_line", "export_llama_quantize", "file_type_name", "read_llama_quantize", "tensor_types"]

# QUANT_OPTIONS in tools/quantize/quantize.cpp, by llama_ftype
_FILE_TYPES = {
    2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 12: "Q3_K_M", 15: "Q4_K_M", 17: "Q5_K_M",
    18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 28: "IQ2_S",
    30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
_CHANGED = "= ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # split at, or lowercased
_LONGEST = 63  # GGML_MAX_NAME, with its final zero


def tensor_types(recipe: Recipe, *, compact: bool = False) -> str:
    """The file: one line a tensor that is not left alone, or with `compact` as few patterns as find the same.

    Raises RecipeError for a name that no tensor of llama.cpp can have.
    """
    formats = {choice.name: choice.format for choice in changing(recipe)}
    refuse(
        formats, lambda name: 0 < len(name.encode("utf-8", "surrogateescape")) <= _LONGEST and "\0" not in name,
        "llama-quantize", f"names have 1 to {_LONGEST} bytes and no zeros there",
        "Write this model with `planner quantize`.",
    )  # fmt: skip
    rules = (compacted if compact else one_each)(formats, _escape)
    return "".join(f"{pattern}={fmt}\n" for pattern, fmt in rules)


def _escape(text: str) -> str:
    return escaped_ecmascript(text, _CHANGED)


def file_type_name(recipe: Recipe) -> str:
    """What llama-quantize calls the recipe's `general.file_type`."""
    return _FILE_TYPES.get(recipe.file_type, "Q4_K_M")


def command_line(recipe: Recipe, types: Path, threads: int) -> str:
    """The command that makes the same tensors, for a POSIX shell; an option a line."""
    lines: list[list[str | Path]] = [["llama-quantize"], ["--tensor-type-file", types]]
    if recipe.imatrix is not None:
        lines.insert(1, ["--imatrix", recipe.imatrix.path])  # as it is: the name goes into the metadata
    lines.append([Path(recipe.model.path), "OUT.gguf", file_type_name(recipe), str(threads)])
    return " \\\n  ".join(command(*words) for words in lines)


def export_llama_quantize(recipe: Recipe, paths: Mapping[str, Path], *, compact: bool, threads: int) -> Exported:
    """The file and its command. `paths`: suffix → where that file will be. Raises RecipeError."""
    return Exported({".types.txt": tensor_types(recipe, compact=compact)},
                    command_line(recipe, paths[".types.txt"], threads))  # fmt: skip


def read_llama_quantize(text: str, where: str) -> list[Rule]:
    """The rules of a tensor-type file, or of a script's `--tensor-type`s, read as llama-quantize does. Raises
    RecipeError."""
    rules = []
    for number, word in enumerate(tensor_type_words(text) or text.split(), 1):
        pattern, separator, name = word.partition("=")
        if not (separator and pattern and name):
            raise RecipeError(
                f"{where}: word {number} is {word[:80]!r}, not PATTERN=TYPE.",
                "Comments and white space within a pattern are nothing that llama-quantize reads.",
            )
        # ASCII only: tolower of the C locale
        lowered = "".join(character.lower() if character.isascii() else character for character in pattern)
        rules.append(Rule(Regex(lowered, "ecmascript", f"{where}: pattern {number},"), name))
    return rules
