"""llama-quantize's `--tensor-type-file`, by the rules of its parser (tools/quantize/quantize.cpp, src/llama-quant.cpp).

Words separated by white space, no comments. A word is `PATTERN=TYPE`, split at the first `=`; the pattern is lowercased
and searched for (std::regex, ECMAScript) in each tensor's name; the first match decides. Characters that the parser
would split at or change (white space, `=`, capitals) are written as escapes: `\x20`.
"""

from __future__ import annotations

from pathlib import Path

from planner.dialects.dialect import Dialect, ExportContext, Exported, beginning, changing, refuse
from planner.dialects.patterns import compacted, escaped_ecmascript, one_each
from planner.dialects.regex import Regex
from planner.dialects.rules import Rule, reader_of_rules
from planner.dialects.shell import is_script, tensor_type_words
from planner.errors import RecipeError
from planner.formats.ggml import file_types
from planner.gguf.llama_cpp import is_kept_by_us
from planner.recipe import Recipe
from planner.text import command

__all__ = ["DIALECT", "base_type", "command_line", "override_file_type", "tensor_types"]

# Beside an unquantized base all rules are ignored (llama_tensor_get_type: `if (ggml_is_quantized(default_type))`), and
# from pull request 19770 (2026-03-10) to 22572 (2026-05-01) those whose type is the base's own: there the mix decides
# (issue 22544). The mix Q8_0 has no other type, and tensors that no pattern matches lose least.
_BASE = "Q8_0"
_KEEP_IT = (
    f"Keep the base {_BASE}. Beside another, llama-quantize of 2026-03-10 to 05-01 ignores rules of the base's own "
    "type (llama.cpp#22544)."
)
_CHANGED = "= ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # split at, or lowercased
# src/llama-quant.cpp; the other order came with pull request 14572 and went with 19770
_ORDER = " llama-quantize takes the first rule that finds a tensor; from July 2025 to early 2026 it took the last."
_LONGEST = 63  # GGML_MAX_NAME, with its final zero


def tensor_types(recipe: Recipe, *, compact: bool = False) -> str:
    """Return the file: one line per tensor that llama-quantize would not leave alone, or with `compact` a few patterns
    with the same matches.

    Raises RecipeError for a name that no tensor of llama.cpp can have.
    """
    architecture = recipe.model.architecture
    kept = [choice for choice in recipe.tensors if is_kept_by_us(choice.name, choice.shape, architecture)]
    formats = {choice.name: choice.format for choice in (*changing(recipe), *kept)}
    refuse(
        formats, lambda name: 0 < len(name.encode("utf-8", "surrogateescape")) <= _LONGEST and "\0" not in name,
        "llama-quantize", f"names have 1 to {_LONGEST} bytes and no zeros there",
        "Write this model with `planner quantize`.",
    )  # fmt: skip
    rules = (compacted if compact else one_each)(formats, _escape)
    return "".join(f"{pattern}={fmt}\n" for pattern, fmt in rules)


def _escape(text: str) -> str:
    return escaped_ecmascript(text, _CHANGED)


def base_type(recipe: Recipe) -> tuple[str, list[str]]:
    """Return the type that the command names, which each tensor's own pattern overrides, and the arguments that set
    `general.file_type` to the recipe's if the base is another."""
    return _BASE, override_file_type(recipe, _BASE)


def override_file_type(recipe: Recipe, base: str) -> list[str]:
    """Return the arguments that set `general.file_type` to the recipe's, where `base` is another."""
    if file_types().get(recipe.file_type) in (None, base):
        return []
    return ["--override-kv", f"general.file_type=int:{recipe.file_type}"]


def command_line(recipe: Recipe, types: Path, threads: int) -> str:
    """Return the command that makes the same tensors, for a POSIX shell, one option a line."""
    base, override = base_type(recipe)
    lines: list[list[str | Path]] = [["llama-quantize"], ["--tensor-type-file", types]]
    if recipe.imatrix is not None:
        lines.insert(1, ["--imatrix", recipe.imatrix.path])  # as it is: the name goes into the metadata
    if override:
        lines.append([*override])
    lines.append([Path(recipe.model.path), "OUT.gguf", base, str(threads)])
    return " \\\n  ".join(command(*words) for words in lines)


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the file and its command. Raises RecipeError."""
    types = tensor_types(recipe, compact=context.compact)
    line = command_line(recipe, context.paths[".types.txt"], context.threads)
    return Exported({".types.txt": types}, line, [_KEEP_IT] if base_type(recipe)[1] else [])


def _parse(text: str, where: str) -> list[Rule]:
    """Return the rules of a tensor-type file, or of a script's `--tensor-type`s, read as llama-quantize does. Raises
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


def _sniff(text: str) -> bool:
    """Return whether a text is a script that names tensor types, or all words of its first line may be rules."""
    if is_script(text):
        return bool(tensor_type_words(text)) and "--custom-q" not in text
    first = next(iter(beginning(text).splitlines()), "").split()
    return bool(first) and all("=" in word for word in first)


DIALECT = Dialect(write=_write, suffixes=(".types.txt",), read=reader_of_rules(_parse, _ORDER), sniff=_sniff)
