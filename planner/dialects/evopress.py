"""Configurations of EvoPress for GGUF, as gguf_stitcher.py of the gptq-gguf-toolkit reads them.

Lines `TENSOR: BITS (BITS-TYPE.pth)`, split at the first colon; the file in brackets is one of the layer database, whose
name gguf_splitter.py makes of the type and of its own table of bits. Every tensor of the model has a line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from planner.dialects.dialect import Exported, Found, refuse
from planner.errors import RecipeError, option
from planner.recipe import Recipe
from planner.text import command, some

__all__ = ["configuration", "export_evopress", "read_evopress"]

# get_tensor_bit_width in mapper/gguf_splitter.py; what is not there would all be called 32
_BITS = {
    "f32": "32", "f16": "16", "bf16": "16", "q4_0": "4.5", "q4_1": "5", "q5_0": "5.5", "q5_1": "6", "q8_0": "8.5",
    "q2_K": "2.5625", "q3_K": "3.4375", "q4_K": "4.5", "q5_K": "5.5", "q6_K": "6.5625", "iq2_xxs": "2.0625",
    "iq2_xs": "2.3125", "iq2_s": "2.5", "iq3_xxs": "3.0625", "iq3_s": "3.44", "iq4_nl": "4.56", "iq4_xs": "4.25",
    "iq1_s": "1.5625", "iq1_m": "1.75",
}  # fmt: skip
_LINE = re.compile(r"[\d.]+\s*\([\d.]+-([^)]+)\.pth\)")


def configuration(recipe: Recipe) -> str:
    """The lines. Raises RecipeError for types and names that they cannot say."""
    refuse(
        recipe.formats,
        lambda name: ":" not in name and name == name.strip() and name[:1] not in ("#", "") and name.isprintable(),
        "EvoPress", "its lines are split at the first colon and trimmed, and # begins a comment",
        "Write this model with `planner quantize`.",
    )  # fmt: skip
    lines = []
    for choice in recipe.tensors:
        bits = _BITS.get(choice.format)
        if bits is None:
            raise RecipeError(
                f"EvoPress has no number of bits for {choice.format}, which {choice.name} has.",
                f"Solve again without it: {option('types', 'all,-' + choice.format)}.",
            )
        lines.append(f"{choice.name}: {bits} ({bits}-{choice.format.upper()}.pth)\n")
    return "".join(lines)


def export_evopress(recipe: Recipe, paths: Mapping[str, Path], *, compact: bool, threads: int) -> Exported:
    """The lines, and the command that puts the model together from a layer database. Raises RecipeError."""
    del threads
    if compact:
        raise RecipeError("EvoPress has no patterns: a line is one tensor.", f"Leave {option('compact')} out.")
    stitch = command(
        "python", "gguf_stitcher.py", "LAYER_DATABASE", "OUT.gguf", "--config", paths[".evopress.txt"],
        "--original-model", Path(recipe.model.path),
    )  # fmt: skip
    return Exported({".evopress.txt": configuration(recipe)}, stitch)


def read_evopress(text: str, where: str) -> Found:
    """Tensor → type; of several lines for one tensor the last counts, and a note says so. Raises RecipeError, also for
    lines with a number of bits alone: several types have it."""
    found: dict[str, str] = {}
    again: dict[str, None] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, separator, rest = line.partition(":")
        match = _LINE.fullmatch(rest.strip())
        if not separator or match is None:
            raise RecipeError(
                f"{where}: line {number} is {line[:80]!r}, not TENSOR: BITS (BITS-TYPE.pth).",
                "A number of bits alone does not say which type is meant.",
            )
        if found.get(name.strip(), match[1]) != match[1]:
            again[name.strip()] = None
        found[name.strip()] = match[1]
    notes = [f"{some(again)}: named again with another type; the last line counts."] if again else []
    return Found(found, tuple(notes))
