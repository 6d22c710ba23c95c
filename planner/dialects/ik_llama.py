"""ik_llama.cpp's `--custom-q`, by the rules of its parser (examples/quantize/quantize.cpp, src/llama-quantize.cpp).

One argument, split at every comma, each part at its first `=`: a pattern that is searched for in the name (std::regex,
ECMAScript; the first that is found decides) and the exact name of a type: `q4_K`, `iq4_ks`. People publish a rule
a line with comments between, in a script that makes one argument of them. Its imatrix is the older `.dat`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from planner.dialects.dialect import Dialect, ExportContext, Exported, beginning, changing, refuse, type_names
from planner.dialects.llama_quantize import override_file_type
from planner.dialects.patterns import compacted, escaped_ecmascript, one_each
from planner.dialects.regex import Regex
from planner.dialects.rules import Rule, reader_of_rules
from planner.dialects.shell import is_script, script_rules, tensor_type_words
from planner.errors import RecipeError, option
from planner.formats.ggml import file_types, types_of_dialect
from planner.recipe import Choice, Recipe
from planner.text import command

__all__ = ["DIALECT"]

_TYPES = types_of_dialect("ik_llama")
# No base: rules are ignored beside what is unquantized (issue 2415 there), and QUANT_OPTIONS lacks types of newer
# llama.cpp
_NO_BASE = ("F32", "F16", "BF16", "NVFP4", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0")
_BASE = "Q8_0"  # for recipes whose own type is none
# llama_model_quantize_internal in src/llama-quantize.cpp leaves these alone, where llama.cpp quantizes them
_LEFT_ALONE = ("ssm_x.weight", "ssm_dt.weight")
# and these as llama.cpp does; all other tensors that llama.cpp leaves alone it quantizes unless told otherwise
_LEFT_ALONE_TOO = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d", "attn_rel_b.weight")
_LONGEST = 63  # GGML_MAX_NAME, with its final zero
_LARGEST_ARGUMENT = 131_072 - 1  # MAX_ARG_STRLEN of Linux, with its final zero

_SPACED = re.compile(r"\S+\s*=\s*\w+\s*(,|#|$)")
_MORE = re.compile(r"=\w+\s*(,|#)")  # behind a rule: another one, or a comment
_COMMENT = re.compile(r"(=\s*\w+\s*,?)\s+#.*")  # behind a rule


def _custom_q(recipe: Recipe, *, compact: bool) -> str:
    """Return the argument of `--custom-q`. Raises RecipeError for types and names that it cannot express."""
    type_names(recipe, _TYPES, "ik_llama.cpp")
    formats = {choice.name: choice.format for choice in recipe.tensors if _is_told(choice)}
    refuse(
        formats, lambda name: 0 < len(name.encode("utf-8", "surrogateescape")) <= _LONGEST and "\0" not in name,
        "ik_llama.cpp", f"names have 1 to {_LONGEST} bytes and no zeros there",
        "Write this model with `planner quantize`.",
    )  # fmt: skip
    rules = (compacted if compact else one_each)(formats, lambda text: escaped_ecmascript(text, ",="))
    return ",".join(f"{pattern}={fmt}" for pattern, fmt in rules)


def _is_told(choice: Choice) -> bool:
    """Return whether a rule is needed: also for matrices that llama.cpp leaves alone and ik_llama.cpp would
    quantize."""
    if not choice.left_alone:
        return True
    matrix = sum(size > 1 for size in choice.shape) > 1 and choice.name.endswith("weight")
    return matrix and choice.format in _TYPES and not any(part in choice.name for part in _LEFT_ALONE_TOO)


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the argument as a file, the older imatrix beside it where the recipe has one, and the command. Raises
    RecipeError."""
    paths = context.paths
    argument = _custom_q(recipe, compact=context.compact)
    if len(argument) > _LARGEST_ARGUMENT:
        raise RecipeError(
            f"The rules take {len(argument):,} bytes, and Linux allows {_LARGEST_ARGUMENT:,} in one argument.",
            f"Merge them with {option('compact')}.",
        )
    lines = ["llama-quantize"]
    if recipe.imatrix is not None:
        lines.append(command("--imatrix", paths[".imatrix.dat"]))
    lines.append(f'--custom-q "$({command("cat", paths[".custom-q.txt"])})"')
    base = file_types().get(recipe.file_type, _BASE)
    base = _BASE if base in _NO_BASE else base
    if override := override_file_type(recipe, base):
        lines.append(command(*override))
    lines.append(command(Path(recipe.model.path), "OUT.gguf", base, str(context.threads)))
    imatrix = None if recipe.imatrix is None else paths[".imatrix.dat"]
    return Exported({".custom-q.txt": argument + "\n"}, " \\\n  ".join(lines), _notes(recipe), imatrix)


def _notes(recipe: Recipe) -> list[str]:
    stay = [choice.name for choice in changing(recipe) if choice.name.endswith(_LEFT_ALONE)]
    notes = []
    if stay:
        notes.append(
            f"ik_llama.cpp leaves {stay[0]}{f' and {len(stay) - 1} more' if stay[1:] else ''} as they are, "
            "whatever a rule says: its file will be larger than the recipe's."
        )
    return notes


def _parse(text: str, where: str) -> list[Rule]:
    """Return the rules of a `--custom-q` argument, or of lines or a shell script that become one. Comments, blank
    lines, indentation and fences are skipped, and a line end separates rules like a comma. Raises RecipeError."""
    rules = []
    for number, part in enumerate(_parts(script_rules(text) or text), 1):
        pattern, separator, name = part.partition("=")
        if not (separator and pattern and name):
            raise RecipeError(
                f"{where}: rule {number} is {part[:80]!r}, not PATTERN=TYPE.",
                "Rules are separated by commas or line breaks, so a pattern has none; comments begin with #.",
            )
        rules.append(Rule(Regex(pattern.rstrip(), "ecmascript", f"{where}: rule {number},"), name.strip()))
    return rules


def _parts(text: str) -> Iterator[str]:
    for raw in text.splitlines():
        line = raw.strip().removesuffix("\\")
        if not line.startswith(("#", "```")):
            yield from filter(None, (part.strip() for part in _COMMENT.sub(r"\1", line).split(",")))


def _sniff(text: str) -> bool:
    """Return whether a text is a script that gives its rules to something other than llama-quantize, has comments, or
    begins with a rule followed by a comma, a comment or the end of the line."""
    if is_script(text):
        return not tensor_type_words(text) or "--custom-q" in text
    begin = beginning(text)
    lines = [line.strip() for line in begin.splitlines() if line.strip()]
    if not lines or any(line.startswith("#") for line in lines):
        return bool(lines)
    if all("=" in word for word in lines[0].split()):
        return _MORE.search(begin) is not None
    return _SPACED.match(lines[0]) is not None


DIALECT = Dialect(
    write=_write,
    suffixes=(".custom-q.txt", ".imatrix.dat"),
    families=("gguf", "ik_llama"),
    read=reader_of_rules(_parse),
    sniff=_sniff,
)
