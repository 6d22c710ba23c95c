"""llama-quantize's `--tensor-type-file`, by the rules of its parser (tools/quantize/quantize.cpp).

Words separated by white space, no comments. A word is `PATTERN=TYPE`, split at the first `=`; the pattern is lowercased
and searched for (std::regex, ECMAScript) in each tensor's name; the first that is found decides.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from planner.errors import RecipeError
from planner.recipes.recipe import Recipe

__all__ = ["command_line", "file_type_name", "tensor_types"]

# QUANT_OPTIONS in tools/quantize/quantize.cpp, by llama_ftype
_FILE_TYPES = {
    2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 12: "Q3_K_M", 15: "Q4_K_M", 17: "Q5_K_M",
    18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 28: "IQ2_S",
    30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
# What the parser can say: lower case (it lowercases), no white space (it splits there), no "="
_SAYABLE = re.compile(r"[a-z0-9_.\-]+")


def tensor_types(recipe: Recipe) -> str:
    """The file: one line a tensor that is not left alone. Raises RecipeError for a name that the parser cannot
    match."""
    lines = []
    for choice in recipe.tensors:
        if choice.why.startswith("left alone"):
            continue
        if not _SAYABLE.fullmatch(choice.name):
            raise RecipeError(
                f"llama-quantize cannot be told about the tensor {choice.name!r}: it lowercases patterns and splits "
                "them at white space.",
                "Write this model with `planner quantize`.",
            )
        pattern = choice.name.replace(".", r"\.").replace("-", r"\-")
        lines.append(f"^{pattern}$={choice.format}\n")
    return "".join(lines)


def file_type_name(recipe: Recipe) -> str:
    """What llama-quantize calls the recipe's `general.file_type`."""
    return _FILE_TYPES.get(recipe.file_type, "Q4_K_M")


def command_line(recipe: Recipe, types: Path, threads: int) -> str:
    """The command that makes the same tensors, for a POSIX shell; an option a line."""
    lines = [["llama-quantize"], ["--tensor-type-file", str(types)]]
    if recipe.imatrix is not None:
        lines.insert(1, ["--imatrix", recipe.imatrix.path])
    lines.append([recipe.model.path, "OUT.gguf", file_type_name(recipe), str(threads)])
    return " \\\n  ".join(shlex.join(words) for words in lines)
